"""Which process writes what, of a folder that several fill together."""

from collections.abc import Mapping, Sequence


def owners(shards: Sequence[Mapping[str, int]], count: int) -> dict[str, int]:
  """Which of `count` processes writes each tensor.

  Neighbours stay together, and every process has about as many bytes. Shards are not cut where there are
  enough of them: a file that one process writes alone needs nobody else to be complete.

  Args:
    shards: of each file its tensors and their bytes, in order.
    count: of processes.

  >>> owners([{"a": 4, "b": 4}, {"c": 8}], 2)
  {'a': 0, 'b': 0, 'c': 1}
  >>> owners([{"a": 4, "b": 2, "c": 2}], 2)
  {'a': 0, 'b': 1, 'c': 1}
  """
  units = shards if len(shards) >= count else [{name: n} for shard in shards for name, n in shard.items()]
  weights = [sum(unit.values()) + 1 for unit in units]  # also an empty tensor lies somewhere
  total, before = sum(weights), 0.0
  found: dict[str, int] = {}
  for unit, weight in zip(units, weights, strict=True):
    middle = before + weight / 2
    before += weight
    found |= dict.fromkeys(unit, int(middle / total * count))
  return found
