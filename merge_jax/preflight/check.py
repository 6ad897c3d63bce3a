"""The whole check of a pool."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from merge_jax import checkpoints, host
from merge_jax.checkpoints import Checkpoint
from merge_jax.preflight import structure
from merge_jax.preflight import values as tensors
from merge_jax.preflight.findings import Finding
from merge_jax.preflight.memory import Needs, verdict


def open_pool(paths: Sequence[str], base: str | None = None) -> tuple[list[Checkpoint], Checkpoint | None]:
  """Opens all checkpoints of a pool, and its base.

  Raises:
    ValueError: no checkpoint, or one that is listed twice.
  """
  if not paths:
    raise ValueError("There is no checkpoint; give at least one: --checkpoints=a,b,c.")
  pool = [checkpoints.open(path) for path in paths]
  resolved = [checkpoint.path.resolve() for checkpoint in pool]
  for path in resolved:
    if resolved.count(path) > 1:
      raise ValueError(f"Checkpoint {path} is listed twice.")
  return pool, None if not base else checkpoints.open(base)


def labels(pool: Sequence[Checkpoint]) -> list[str]:
  """A short name for each checkpoint: the folder's, or as much of the path as tells them apart."""
  for depth in range(1, 8):
    names = ["/".join(checkpoint.path.resolve().parts[-depth:]) for checkpoint in pool]
    if len(set(names)) == len(names):
      return names
  return [str(checkpoint.path.resolve()) for checkpoint in pool]


def check(
  pool: Sequence[Checkpoint],
  base: Checkpoint | None = None,
  *,
  memory: Callable[[], Iterable[Finding]] | None = None,
  values: bool = True,
) -> Iterator[Finding]:
  """Checks names, shapes, dtypes, configs, vocabulary and memory, then values, ties and ancestry.

  Args:
    pool: open checkpoints.
    base: their common ancestor, if it is used.
    memory: what is said of memory, asked if the tensors are alike; None: whether the default device has room
      for the pool, its base or the mean of it, and one candidate.
    values: also read the tensors.
  """
  models = [*zip(labels(pool), pool, strict=True), *([("base", base)] if base else [])]
  found = list(structure.tensors(models))
  yield from found
  yield from structure.configs(models)
  yield from structure.vocabulary(models)
  alike = not any(finding.level == "error" for finding in found)
  if memory is not None:
    yield from memory() if alike else ()
  else:
    yield from verdict(Needs([*[c.specs for c in pool], (base or pool[0]).specs], pool[0].specs))
  if values and alike:
    yield from read(pool, base)


def read(pool: Sequence[Checkpoint], base: Checkpoint | None = None) -> Iterator[Finding]:
  """The checks that read the tensors: finite values, tied copies, common ancestor.

  All processes of a job call this together; each reads the values of its share of the models, of
  Orbax those of all: its reads are of all processes together.
  """
  models = [*zip(labels(pool), pool, strict=True), *([("base", base)] if base else [])]
  alone = all(checkpoint.format == "safetensors" for _, checkpoint in models)
  mine = models[host.index() :: host.count()] if alone else models
  found = [*tensors.values(mine), *tensors.ties(mine)]
  if host.is_lead() or not alone:
    found += tensors.ancestor(models, base)
  everywhere = [Finding(**one) for part in host.gather([f._asdict() for f in found]) for one in part]
  broken = {finding.check for finding in everywhere if finding.level == "error"}
  yield from dict.fromkeys(f for f in everywhere if f.level == "error" or f.check not in broken)
