"""Reads YAML as plain data: safe, no key twice, no bombs, every error one sentence with its line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from merge_jax import storage
from merge_jax.errors import shown

LIMIT = 100_000
"""Nodes of a document after its anchors are expanded; a recipe of a thousand layers has fewer."""
LARGEST = 10_000_000
"""Bytes of a file."""


def read(path: Path) -> list[Any]:
  """The documents of a YAML file, empty ones left out.

  Raises:
    FileNotFoundError, ValueError: no such file; not UTF-8 or YAML; a key twice; a tag that makes a
      set or an object; anchors that expand to more than `LIMIT` nodes or contain themselves.
  """
  raw = storage.read_bytes(path)
  if len(raw) > LARGEST:
    raise ValueError(f"{path}: has {len(raw):,} bytes; a recipe has at most {LARGEST:,}.")
  try:
    text = raw.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
  return loads(text, str(path))


def loads(text: str, where: str) -> list[Any]:
  """The documents of YAML text; `where` names it in errors, which are as of `read`.

  >>> loads("weight: [0.1, 0.9]", "a.yml")
  [{'weight': [0.1, 0.9]}]
  >>> loads("a: 1\\na: 2", "a.yml")
  Traceback (most recent call last):
  ValueError: a.yml:2: the key 'a' stands there twice; expected it once.
  """
  _refuse_control_characters(text, where)
  loader = yaml.SafeLoader(text)
  documents = []
  try:
    while loader.check_node():
      node = loader.get_node()
      _check(node, where)
      documents.append(loader.construct_document(node))
  except yaml.MarkedYAMLError as error:
    mark = error.problem_mark or error.context_mark
    line = f":{mark.line + 1}" if mark else ""
    problem = " ".join(str(error.problem or error.context).split())
    hint = " Indent with spaces." if "\\t" in problem else ""
    raise ValueError(f"{where}{line}: not valid YAML ({problem}).{hint}") from None
  except RecursionError:
    raise ValueError(f"{where}: nested too deeply.") from None
  except (ValueError, LookupError, AttributeError) as error:  # 2024-13-45, ten thousand digits, !!bool maybe
    if isinstance(error, ValueError) and str(error).startswith(where):
      raise
    raise ValueError(f"{where}: not valid YAML ({error or 'a value that its tag does not fit'}).") from None
  finally:
    loader.dispose()
  return [document for document in documents if document is not None]


def _refuse_control_characters(text: str, where: str) -> None:
  found = yaml.reader.Reader.NON_PRINTABLE.search(text)
  if found is not None:
    line = text.count("\n", 0, found.start()) + 1
    raise ValueError(f"{where}:{line}: holds the control character {shown(found[0])}; remove it.")


def _check(root: yaml.Node, where: str) -> None:
  """Raises ValueError for keys that stand twice, and anchors that blow up."""
  sizes: dict[int, int] = {}
  open_: set[int] = set()

  def size(node: yaml.Node) -> int:
    if id(node) in open_:
      raise ValueError(f"{where}:{node.start_mark.line + 1}: an anchor contains itself.")
    if id(node) not in sizes:
      open_.add(id(node))
      if node.tag == "tag:yaml.org,2002:set":
        raise ValueError(f"{where}:{node.start_mark.line + 1}: a !!set has no order; write a list.")
      if isinstance(node, yaml.MappingNode):
        _unique(node, where)
      sizes[id(node)] = 1 + sum(map(size, _children(node)))
      open_.discard(id(node))
    if sizes[id(node)] > LIMIT:
      line = node.start_mark.line + 1
      raise ValueError(f"{where}:{line}: expands to more than {LIMIT:,} entries; write less of them.")
    return sizes[id(node)]

  size(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
  if isinstance(node, yaml.MappingNode):
    for pair in node.value:
      yield from pair
  elif isinstance(node, yaml.SequenceNode):
    yield from node.value


def _unique(node: yaml.MappingNode, where: str) -> None:
  seen: set[str] = set()
  for key, _ in node.value:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
      raise ValueError(f"{where}:{line}: a key is a list or an object; expected a plain word.")
    if key.value in seen:
      raise ValueError(f"{where}:{line}: the key {shown(key.value)} stands there twice; expected it once.")
    seen.add(key.value)
