"""Whether a generated text is the answer that a task asks for."""

import re
from decimal import Decimal, InvalidOperation

from merge_jax.evals.options import Options

NUMBER = re.compile(
  r"(?<!\d)(?:[-\u2212][$€£]?)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
  r"(?:[eE][-+\u2212]?\d{1,3}(?!\w))?"
)
"""A number, perhaps with commas between thousands, or an exponent.

A point may come first, but for "No.5" and "...5". Its minus may be that of typesetters, or stand before a
currency.
"""


def agrees(text: str, target: str, options: Options) -> bool:
  """Whether text and target have the same answer.

  Both are read by the rule of the task; of a target in which it finds nothing, all is the answer.

  >>> agrees("6 * 7 = 42. So 42.0!", "42", Options(answer="last_number"))
  True
  >>> agrees("The capital is\\nParis.", "the capital is Paris", Options())
  True
  """
  found, wanted = read(cut(text, options.stop), options), read(target, options)
  if found is None:
    return False
  numbers = options.answer != "text"
  return normalized(found, numbers) == normalized(target if wanted is None else wanted, numbers)


def cut(text: str, stop: tuple[str, ...]) -> str:
  """The text before the first of the strings that end it."""
  return text[: min((at for one in stop if (at := text.find(one)) >= 0), default=len(text))]


def read(text: str, options: Options) -> str | None:
  """The answer in a text by the rule of a task, None if there is none.

  >>> read("so it is\\n#### 1,200\\n", Options(answer="after", pattern="####"))
  ' 1,200'
  """
  if options.answer == "last_number":
    return found[-1] if (found := NUMBER.findall(text)) else None
  if options.answer == "regex":
    match = re.search(options.pattern, text)
    return None if match is None else (match[1] or "" if match.re.groups else match[0])
  if options.answer == "after":
    _, marker, rest = text.rpartition(options.pattern)
    return rest.strip("\n").partition("\n")[0] if marker else None
  return text


def normalized(text: str, numbers: bool = False) -> str:
  """Without differences of case, white space and a full stop at the end; of numbers, their value.

  >>> normalized("  The  Answer. "), normalized("$1,200.0", numbers=True)
  ('the answer', '1200')
  """
  text = " ".join(text.casefold().split()).removesuffix(".").rstrip()
  if numbers and re.fullmatch(rf"[$€£]?{NUMBER.pattern}%?", text):
    try:
      plain = re.sub("[$€£%,]", "", text).replace("\u2212", "-")
      text = f"{Decimal(plain) or Decimal(0):f}"  # 0 has no sign
    except InvalidOperation:
      return text
    return text.rstrip("0").rstrip(".") if "." in text else text
  return text
