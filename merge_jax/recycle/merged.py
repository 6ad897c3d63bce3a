"""The folder of the merge that was chosen: streamed from the pool's files, a tensor at a time."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np

from merge_jax import checkpoints, host, models, streaming
from merge_jax import operators as mj
from merge_jax.evals import streamed
from merge_jax.operators import leafwise, naming
from merge_jax.recycle import methods
from merge_jax.recycle.problem import Problem
from merge_jax.search.point import Candidate
from merge_jax.streaming import Job, Readable, Source


class Mean(NamedTuple):
  """The mean of a tensor of several models, in the dtype of the first one: what `mj.uniform` merges."""

  sources: tuple[Source, ...]

  @property
  def spec(self) -> jax.ShapeDtypeStruct:
    """That of the first one."""
    return self.sources[0].spec

  def read(self) -> np.ndarray:
    """The mean, made again at every call."""
    leaf = mj.Leaf(tuple(source.read() for source in self.sources), None)  # type: ignore[misc]
    weights = np.full(len(self.sources), 1 / len(self.sources), np.float32)
    return np.asarray(leafwise.merge(mj.uniform(), leaf, (), weights, mj.Axes(), self.spec.dtype))

  def release(self) -> None:
    """Of all models."""
    for source in self.sources:
      source.release()

  def __str__(self) -> str:
    return f"the mean of {', '.join(map(str, self.sources))}"


def jobs(problem: Problem, candidate: Candidate) -> Iterator[Job]:
  """A job for each tensor, as the plan of the candidate's method has it."""
  method, first = methods.METHODS[candidate.method], problem.pool[0]
  operator = method.operator(**candidate.point.numbers)
  for entry in mj.plan(operator, first.specs).entries:
    experts = tuple(Source(checkpoint, entry.name) for checkpoint in problem.pool)
    base: Readable | None = None
    if method.needs_base and entry.merged:
      base = Mean(experts) if problem.base is None else Source(problem.base, entry.name)
    spec = jax.ShapeDtypeStruct(entry.shape, first.result_dtype(entry.name))
    weights = candidate.point.array
    if weights.ndim == 2:
      weights = weights[naming.require_match(entry.name, problem.patterns, "weights")]
    yield Job(
      entry.name, spec, operator, experts, base, tuple(weights.tolist()), problem.labels, axes=entry.axes
    )


def write(
  problem: Problem, candidate: Candidate, folder: Path, placed: Mapping[str, streamed.Source] | None = None
) -> None:
  """Writes the merge of a candidate into an empty folder, in the pool's own format, with where it is from.

  All processes of a job call this together: each streams its share of a Hugging Face folder from the pool's
  files; Orbax, which several processes write from their devices alone, gets the merge of what is `placed`.
  """
  made, first = list(jobs(problem, candidate)), problem.pool[0]
  specs = {job.name: job.spec for job in made}
  options: dict[str, Any] = {"together": True} if first.format == "safetensors" else {}
  if placed is not None and host.count() > 1 and first.format == "orbax":
    params = models.unstack(placed[candidate.method].at(candidate.point), problem.suite.stacks)
    with checkpoints.writer(folder, specs, like=first) as out:
      for name in specs:
        out.write(name, params[name])
  else:
    with checkpoints.writer(folder, specs, like=first, **options) as out:
      key = methods.key_of(made[0].operator, problem.settings.search.seed)
      streaming.stream(made, out, key=key, allow_nonfinite=True)  # as it was scored
  if host.is_lead():
    _describe(problem, candidate, folder)


def _weights(problem: Problem, candidate: Candidate) -> dict[str, Any]:
  """By checkpoint; where groups of tensors have their own, by group before."""
  rows = candidate.point.array.tolist()
  if candidate.point.array.ndim == 1:
    return dict(zip(problem.labels, rows, strict=True))
  return {
    part: dict(zip(problem.labels, row, strict=True)) for part, row in zip(problem.parts, rows, strict=True)
  }


def _describe(problem: Problem, candidate: Candidate, folder: Path) -> None:
  """Where the merge is from."""
  (folder / "training.json").unlink(missing_ok=True)  # it tells of the first checkpoint alone
  needs_base = methods.METHODS[candidate.method].needs_base
  provenance = {
    "created_by": "merge_jax recycle",
    "method": candidate.method,
    "weights": _weights(problem, candidate),
    "numbers": candidate.point.numbers,
    "base": (problem.settings.base or "mean of the pool") if needs_base else None,
    # What is published says nothing of the machine that is not in the settings.
    "manifest": msgspec.to_builtins(msgspec.structs.replace(problem.manifest, folder="")),
  }
  (folder / "merge_jax.json").write_text(json.dumps(provenance, indent=2) + "\n")
