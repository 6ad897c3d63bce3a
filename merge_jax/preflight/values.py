"""What the tensors tell: finite values, tied copies, a common ancestor."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from merge_jax.checkpoints import Checkpoint, nonfinite
from merge_jax.preflight.findings import Finding
from merge_jax.preflight.structure import Models

SAMPLE = 1 << 16  # elements of a tensor that cosines are estimated from


def finite(value: np.ndarray) -> bool:
  """Whether no element is NaN or infinite."""
  return nonfinite(value) == 0


def values(models: Models) -> Iterator[Finding]:
  """No NaN and no infinity anywhere."""
  broken = False
  for label, checkpoint in models:
    for name in checkpoint.specs:
      if not finite(checkpoint.read(name)):
        broken = True
        yield Finding("error", "values", f"tensor {name!r} of {label} has NaN or infinite values")
        break
  if not broken:
    yield Finding("ok", "values", "all finite")


def ties(models: Models) -> Iterator[Finding]:
  """Tensors that a config ties are equal where both are stored."""
  for label, checkpoint in models:
    for alias, name in checkpoint.aliases.items():
      if not np.array_equal(checkpoint.read_alias(alias), checkpoint.read(name)):
        detail = (
          f"{label}: config ties {alias} to {name}, but the tensors differ; set tie_word_embeddings to false "
          "there to use both, or remove the head"
        )
        yield Finding("error", "ties", detail)


def ancestor(models: Models, base: Checkpoint | None) -> Iterator[Finding]:
  """Weights that point the same way, as those of one ancestor do; `base` is the last of the models."""
  if len(models) < 2:
    return
  specs = models[0][1].specs
  names = [n for n, s in specs.items() if len(s.shape) > 1 and s.size] or [
    n for n, s in specs.items() if s.size
  ]
  if not names:
    return
  vectors = np.stack([_sample(checkpoint, names) for _, checkpoint in models])
  if not finite(vectors):  # `values` says where
    return
  low = _cosines(vectors)
  what = f"cosine of weights at least {low.min():.3f}"
  far = low.min() < 0.5
  if far:
    what = (
      f"cosine of weights down to {low.min():.3f}: these models seem to have NO COMMON ANCESTOR; a "
      "merge of them is most likely worthless"
    )
  if base is not None and len(models) > 2:
    with np.errstate(over="ignore"):
      alike = _cosines(vectors[:-1] - vectors[-1])
    what += f"; of task vectors {alike.min():.3f} to {alike.max():.3f}"
  yield Finding("warning" if far else "ok", "ancestor", what)
  if base is not None:
    for (label, checkpoint), vector in zip(models[:-1], vectors[:-1], strict=True):
      if np.array_equal(vector, vectors[-1]) and _same(checkpoint, base):
        yield Finding("warning", "ancestor", f"{label} equals the base: its task vector is zero")


def _same(one: Checkpoint, other: Checkpoint) -> bool:
  return all(np.array_equal(one.read(name), other.read(name)) for name in one.specs)


def _sample(checkpoint: Checkpoint, names: Sequence[str]) -> np.ndarray:
  parts = []
  for name in names:
    flat = checkpoint.read(name).reshape(-1)
    parts.append(flat[:: max(1, math.ceil(flat.size / SAMPLE))].astype(np.float32))
  return np.concatenate(parts)


@np.errstate(over="ignore", invalid="ignore")
def _cosines(vectors: np.ndarray) -> np.ndarray:
  """Cosines of all pairs; squares of huge weights overflow, and point nowhere."""
  norms = np.linalg.norm(vectors, axis=1)
  gram = vectors @ vectors.T / np.maximum(np.outer(norms, norms), 1e-30)
  pairs = gram[np.triu_indices(len(vectors), 1)]
  return pairs if len(pairs) else np.ones(1)
