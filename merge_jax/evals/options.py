"""What a task file may say of itself in its first line: metric, prompts, how text is generated and read."""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from merge_jax.evals import metrics

_Stop = Annotated[str, Meta(min_length=1, max_length=64)]


class Shot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """A solved example that stands before every prompt."""

  prompt: str
  target: str


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
  """Of a task.

  Attributes:
    metric: a name in `metrics.METRICS`, "" for the first that fits; `path:metric` comes before it.
    shots: solved examples before every prompt; in a chat, earlier turns.
    separator: what follows a shot.
    chat: prompts are messages of a user, written by the chat template beside the tokenizer.
    system: a system message before them.
    max_tokens: most that are generated.
    stop: strings that end a generated text, and are no part of it.
    answer: what of a text is compared: "text", all of it; "last_number"; "regex", the first match of
      `pattern`, or its first group; "after", what follows the last `pattern` in its line.
    pattern: see `answer`.
  """

  metric: str = ""
  shots: Annotated[tuple[Shot, ...], Meta(max_length=256)] = ()
  separator: str = "\n\n"
  chat: bool = False
  system: str = ""
  max_tokens: Annotated[int, Meta(ge=1, le=65_536)] = 256
  stop: Annotated[tuple[_Stop, ...], Meta(max_length=16)] = ()
  answer: Literal["text", "last_number", "regex", "after"] = "text"
  pattern: str = ""

  def check(self, where: str, metric: str = "") -> None:
    """Raises ValueError for options that contradict each other, or would do nothing.

    Args:
      where: file and line, for errors.
      metric: what comes before the file's own; "" for none.
    """
    if self.metric:
      metrics.named(self.metric, where)
    if self.system and not self.chat:
      raise ValueError(f'{where}: system is a message of a chat; add "chat": true.')
    if self.separator != Options().separator and (self.chat or not self.shots):
      why = "a chat has turns" if self.chat else "there are none"
      raise ValueError(f"{where}: separator follows shots, and {why}; leave it out.")
    needs = self.answer in ("regex", "after")
    if needs != bool(self.pattern):
      have = "needs a pattern" if needs else "takes no pattern"
      raise ValueError(f'{where}: answer is {self.answer!r}, which {have}; "regex" and "after" have one.')
    if self.answer == "regex":
      try:
        re.compile(self.pattern)
      except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}: pattern is no regular expression ({error}).") from None
    if any(name and metrics.METRICS[name].generates for name in (self.metric, metric)):
      return
    plain, known = Options(), [metric.name for metric in metrics.METRICS.values() if metric.generates]
    for name in ("max_tokens", "stop", "answer"):
      if getattr(self, name) != getattr(plain, name):
        raise ValueError(f'{where}: {name} is for generated text; add "metric": "{known[0]}".')
