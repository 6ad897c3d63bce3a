"""Will these checkpoints merge, and do they fit? Asked before anything long starts."""

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from merge_jax import checkpoints
from merge_jax.checkpoints import Checkpoint, huggingface

SAMPLE = 1 << 16  # elements of a tensor that cosines are estimated from


class Finding(NamedTuple):
  """One line of the check.

  Attributes:
    level: "ok", "warning" or "error".
    check: what was looked at.
    detail: what was found, and what to do about it.
  """

  level: str
  check: str
  detail: str


class PreflightError(ValueError):
  """Checkpoints that cannot be merged; says the first error."""


def open_pool(paths: Sequence[str], base: str | None = None) -> tuple[list[Checkpoint], Checkpoint | None]:
  """Opens all checkpoints of a pool, and its base.

  Raises:
    ValueError: no checkpoint, or two with one name (scores and weights are told apart by it).
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
  pool: Sequence[Checkpoint], base: Checkpoint | None = None, *, values: bool = True
) -> Iterator[Finding]:
  """Checks names, shapes, dtypes, ties, vocabulary, values, ancestry and memory.

  Args:
    pool: open checkpoints.
    base: their common ancestor, if it is used.
    values: also read the tensors: finite values, tied copies, common ancestor.
  """
  models = [*zip(labels(pool), pool, strict=True), *([("base", base)] if base else [])]
  structure = list(_structure(models))
  yield from structure
  yield from _vocabulary(models)
  yield from _memory(pool, base)
  if values and not any(finding.level == "error" for finding in structure):
    yield from _values(models)
    yield from _ties(models)
    yield from _ancestor(models, base)


def require(findings: Sequence[Finding]) -> None:
  """Raises PreflightError with the first error, if there is one."""
  for finding in findings:
    if finding.level == "error":
      raise PreflightError(f"{finding.check}: {finding.detail}")


def table(findings: Sequence[Finding]) -> str:
  """The findings as aligned text."""
  width = max(len(finding.check) for finding in findings)
  marks = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
  return "\n".join(f"{marks[f.level]}  {f.check:<{width}}  {f.detail}" for f in findings)


def _structure(models: Sequence[tuple[str, Checkpoint]]) -> Iterator[Finding]:
  (first_label, first), errors = models[0], 0
  for label, other in models[1:]:
    for name in sorted(first.specs.keys() ^ other.specs.keys())[:3]:
      where = label if name in first.specs else first_label
      errors += 1
      yield Finding("error", "names", f"tensor {name!r} is missing in {where}")
    for name in first.specs.keys() & other.specs.keys():
      a, b = first.specs[name].shape, other.specs[name].shape
      if a != b:
        errors += 1
        yield Finding("error", "shapes", f"tensor {name!r} is {a} in {first_label}, {b} in {label}")
        break
  dtypes = {label: sorted({str(s.dtype) for s in c.specs.values()}) for label, c in models}
  if not errors:
    yield Finding("ok", "names and shapes", f"{len(first.specs)} tensors, {first.parameters:,} parameters")
  if len({tuple(names) for names in dtypes.values()}) > 1:
    yield Finding("warning", "dtypes", f"differ: {dtypes}; the result has those of {first_label}")
  else:
    yield Finding("ok", "dtypes", ", ".join(dtypes[first_label]))
  formats = {c.format for _, c in models}
  if len(formats) > 1:
    yield Finding("warning", "formats", f"{sorted(formats)}; the result is {first.format}")


def _vocabulary(models: Sequence[tuple[str, Checkpoint]]) -> Iterator[Finding]:
  from tokenizers import Tokenizer

  have = [(label, c) for label, c in models if (c.path / "tokenizer.json").is_file()]
  if not have:
    yield Finding("ok", "vocabulary", "no tokenizer beside the tensors: not compared")
    return
  texts = {label: (c.path / "tokenizer.json").read_bytes() for label, c in have}
  (first_label, first_text), same = next(iter(texts.items())), True
  for label, text in texts.items():
    if text == first_text:
      continue
    try:
      a, b = (Tokenizer.from_buffer(t).get_vocab() for t in (first_text, text))
    except Exception as error:  # the library raises bare Exception
      yield Finding("error", "vocabulary", f"tokenizer.json of {label} cannot be read: {error}")
      return
    if a != b:
      same = False
      token = min(a.items() ^ b.items())[0]
      yield Finding("error", "vocabulary", f"{label} and {first_label} differ, first in token {token!r}")
  for label, c in models:
    size = (c.config or {}).get("vocab_size")
    rows = c.specs.get("model.embed_tokens.weight")
    if size is not None and rows is not None and rows.shape[0] != size:
      same = False
      yield Finding("error", "vocabulary", f"{label}: config says {size}, embedding has {rows.shape[0]}")
  if same:
    yield Finding("ok", "vocabulary", f"the same in {len(have)} tokenizers")


def _memory(pool: Sequence[Checkpoint], base: Checkpoint | None) -> Iterator[Finding]:
  loaded = sum(c.nbytes for c in pool) + (base.nbytes if base else 0)
  merged = 2 * 4 * pool[0].parameters  # a candidate in float32, and as much again for its evaluation
  need, have = loaded + merged, available_memory()
  detail = f"{gib(need)} to hold {len(pool)} checkpoints and a candidate, {gib(have)} there"
  yield Finding("ok" if need <= have else "error", "memory", detail)


def available_memory() -> int:
  """Bytes that are free on the devices together, or in the host's memory for a CPU."""
  statistics = [device.memory_stats() for device in jax.local_devices()]
  if all(statistics) and jax.default_backend() != "cpu":
    return sum(int(s["bytes_limit"]) - int(s["bytes_in_use"]) for s in statistics if s)
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
  except (OSError, StopIteration):
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_disk(folder: Path, nbytes: int) -> None:
  """Raises OSError if the disk of a folder has less room than a result takes."""
  there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
  free = shutil.disk_usage(there).free
  need = int(nbytes * 1.05) + (64 << 20)
  if free < need:
    raise OSError(f"{folder}: the result takes about {gib(need)}, the disk has {gib(free)} free.")


def gib(count: float) -> str:
  """Bytes for people.

  >>> gib(3 << 30)
  '3.0 GiB'
  """
  return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 29 else f"{count / (1 << 20):.1f} MiB"


def finite(value: np.ndarray) -> bool:
  """Whether no element is NaN or infinite; the exponent's bits tell, for 16 and 32 bit floats."""
  masks = {"float32": (np.uint32, 0x7F800000), "bfloat16": (np.uint16, 0x7F80),
           "float16": (np.uint16, 0x7C00)}  # fmt: skip
  if str(value.dtype) in masks and value.flags.c_contiguous:
    kind, mask = masks[str(value.dtype)]
    flat = value.reshape(-1).view(kind)
    step = 1 << 22
    return not any(((flat[i : i + step] & mask) == mask).any() for i in range(0, flat.size, step))
  if not jax.numpy.issubdtype(value.dtype, np.inexact):
    return True
  return bool(np.isfinite(value.astype(np.float32)).all())


def _values(models: Sequence[tuple[str, Checkpoint]]) -> Iterator[Finding]:
  broken = False
  for label, checkpoint in models:
    for name in checkpoint.specs:
      if not finite(checkpoint.read(name)):
        broken = True
        yield Finding("error", "values", f"tensor {name!r} of {label} has NaN or infinite values")
        break
  if not broken:
    yield Finding("ok", "values", "all finite")


def _ties(models: Sequence[tuple[str, Checkpoint]]) -> Iterator[Finding]:
  for label, checkpoint in models:
    if checkpoint.format != "safetensors":
      continue
    for alias, name in checkpoint.aliases.items():
      if not np.array_equal(huggingface.read_alias(checkpoint, alias), checkpoint.read(name)):
        detail = f"{label}: config ties {alias} to {name}, but the tensors differ"
        yield Finding("error", "ties", detail)


def _ancestor(models: Sequence[tuple[str, Checkpoint]], base: Checkpoint | None) -> Iterator[Finding]:
  if len(models) < 2:
    return
  names = [n for n, s in models[0][1].specs.items() if len(s.shape) > 1]
  vectors = np.stack([_sample(checkpoint, names) for _, checkpoint in models])
  low = _cosines(vectors)
  what = f"cosine of weights at least {low.min():.3f}"
  far = low.min() < 0.5
  if far:
    what = (
      f"cosine of weights down to {low.min():.3f}: these models seem to have NO COMMON ANCESTOR; a "
      "merge of them is most likely worthless"
    )
  if base is not None and len(models) > 2:
    tasks = vectors[:-1] - vectors[-1]
    alike = _cosines(tasks)
    what += f"; of task vectors {alike.min():.3f} to {alike.max():.3f}"
  yield Finding("warning" if far else "ok", "ancestor", what)
  if base is not None:
    for (label, _), vector in zip(models[:-1], vectors[:-1], strict=True):
      if np.array_equal(vector, vectors[-1]):
        yield Finding("warning", "ancestor", f"{label} equals the base: its task vector is zero")


def _sample(checkpoint: Checkpoint, names: Sequence[str]) -> np.ndarray:
  parts = []
  for name in names:
    flat = checkpoint.read(name).reshape(-1)
    parts.append(flat[:: max(1, math.ceil(flat.size / SAMPLE))].astype(np.float32))
  return np.concatenate(parts) if parts else np.zeros(1, np.float32)


def _cosines(vectors: np.ndarray) -> np.ndarray:
  """Cosines of all pairs."""
  norms = np.linalg.norm(vectors, axis=1)
  gram = vectors @ vectors.T / np.maximum(np.outer(norms, norms), 1e-30)
  pairs = gram[np.triu_indices(len(vectors), 1)]
  return pairs if len(pairs) else np.ones(1)
