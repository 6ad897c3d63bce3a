"""Entries of reasoning-gym, the same ones in every process."""

from collections.abc import Iterator, Set
from typing import Any


class Ordered(frozenset[str]):
  """Letters in order: the library draws from sets, whose order changes from process to process.

  >>> list(Ordered("hash") - {"s"})
  ['a', 'h']
  """

  def __iter__(self) -> Iterator[str]:
    return iter(sorted(super().__iter__()))

  def __sub__(self, other: Set[Any]) -> "Ordered":
    return Ordered(super().__sub__(other))


def entries(name: str, size: int, seed: int, **options: Any) -> Any:
  """A data set of the library; entry i depends on `seed + i`.

  Raises:
    ImportError: the library is not there (extra `data`).
  """
  import reasoning_gym

  found = reasoning_gym.create_dataset(name, size=size, seed=seed, **options)
  if hasattr(found, "letters"):
    found.letters = Ordered(found.letters)
  return found
