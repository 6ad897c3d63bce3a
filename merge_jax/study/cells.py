"""Cells: the independent pieces of a study, each known by all that its result depends on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Cell(NamedTuple):
  """A piece of a study.

  Attributes:
    kind: what is done, such as "train".
    name: for people.
    spec: plain JSON data: all that the result depends on, digests of checkpoints and task files included.
    run: does it; the result is plain JSON data.
  """

  kind: str
  name: str
  spec: Mapping[str, Any]
  run: Callable[[], dict[str, Any]]
