"""Chat templates as they lie beside a tokenizer: found among its files, and rendered as transformers does."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from merge_jax.decoding import decode
from merge_jax.errors import shown

FILE = "chat_template.jinja"
NAMES = (FILE, "chat_template.json", "tokenizer_config.json")
"""The files that may hold a template; the first one does."""


class Generation(jinja2.ext.Extension):
  """The tag by which transformers marks what the assistant says."""

  tags = {"generation"}  # noqa: RUF012

  def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> jinja2.Environment:
  """What templates are written for; it reaches no file and changes nothing."""
  made = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
  )
  made.filters["tojson"] = _tojson
  made.globals |= {"raise_exception": _refuse, "strftime_now": _now}
  return made


def of(files: Mapping[str, bytes]) -> str | None:
  """The chat template in a tokenizer's files, the default one of several; None if there is none.

  >>> of({"tokenizer_config.json": b'{"chat_template": [{"name": "default", "template": "{{ x }}"}]}'})
  '{{ x }}'
  """
  if FILE in files:
    try:
      return files[FILE].decode()
    except UnicodeDecodeError as error:
      raise ValueError(f"{FILE} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
  name = next((name for name in NAMES[1:] if name in files), None)
  template = decode(files[name], dict[str, Any], name).get("chat_template") if name else None
  if isinstance(template, list):
    named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
    template = named[-1].get("template") if named else None
  return template if isinstance(template, str) else None


class Chat:
  """A template, ready to write messages.

  Args:
    template: in Jinja.
    names: special tokens by the names that templates have for them, such as `bos_token`.
    source: where it was found, for errors.

  Raises:
    ValueError: Jinja cannot compile it.

  >>> chat = Chat("{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
  ...             {"bos_token": "^"})
  >>> chat([("user", "hello")])
  '^<user>hello'
  """

  def __init__(self, template: str, names: Mapping[str, str], source: str = "The chat template"):
    self.source, self.text, self._names = source, template, dict(names)
    try:
      self._template = environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
      raise ValueError(f"{source}: line {error.lineno} is no valid Jinja ({error.message}).") from None
    except (SyntaxError, RecursionError, MemoryError):  # of the Python that Jinja writes
      raise ValueError(f"{source} is nested too deeply.") from None
    except ValueError as error:  # of a number with thousands of digits
      raise ValueError(f"{source} is no valid Jinja ({error}).") from None

  def __call__(self, messages: Sequence[tuple[str, str]], *, asked: bool = True) -> str:
    """Messages of pairs of role and content as one text, up to where the assistant's answer begins if asked.

    Raises:
      ValueError: the template refuses them.
    """
    plain = [{"role": role, "content": content} for role, content in messages]
    try:
      rest = {"tools": None, "documents": None} | self._names
      return self._template.render(messages=plain, add_generation_prompt=asked, **rest)
    except Exception as error:  # a template calls what it likes
      raise ValueError(f"{self.source} cannot write {shown(messages)}: {shown(str(error), 200)}") from None


def _tojson(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)
