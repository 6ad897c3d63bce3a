"""A checkpoint as it would be with a merge's tokenizer: its embeddings and head permuted as they are read."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from merge_jax.checkpoints import Checkpoint, Index
from merge_jax.checkpoints.views import View
from merge_jax.errors import unknown
from merge_jax.recipes import tensors
from merge_jax.recipes.tokenizers import TokenizerPlan, configured, vocabulary_size
from merge_jax.streaming import Readable

NAMES = (
  "embed_tokens", "wte", "lm_head", "embed_out", "embed_in", "shared", "word_embeddings", "tok_embeddings",
  "output", "embed", "embedding", "embeddings", "decoder", "predictions", "final_logits_bias",
  "token_embedding", "tokens_embed", "word_embedding", "vocab_projector", "generator_lm_head", "lm_loss",
  "pred_layer.proj",
)  # fmt: skip
"""What tensors with a row for every token end in; their shape must say so, too."""

_BLOCK = 4096  # rows


def vocabulary_tensors(checkpoint: Checkpoint) -> tuple[str, ...]:
  """Names of the tensors with a row for every token.

  They have a known name (`model.embed_tokens.weight`, `lm_head.bias`, …) and as many rows as the config's
  `vocab_size`, or so many columns of one row (BART's `final_logits_bias`).

  Raises:
    ValueError: there is no `vocab_size`, or no tensor has as many rows.
  """
  rows = vocabulary_size(checkpoint)
  names = tuple(
    n for n, spec in checkpoint.specs.items() if _called(n) and _axis(spec.shape, rows) is not None
  )
  if not names:
    raise ValueError(
      f"{checkpoint.path}: vocab_size is {rows}, and no embedding has as many rows "
      f"(looked for {', '.join(NAMES)}); correct config.json."
    )
  return names


def _called(name: str) -> bool:
  stem = "." + re.sub(r"\.(weight|bias)$", "", name)
  return stem.endswith(tuple(f".{one}" for one in NAMES))


def _axis(shape: tuple[int, ...], rows: int) -> int | None:
  """The axis with an entry for every token: the first, or the second of a single row; or None."""
  return 0 if shape[:1] == (rows,) else 1 if shape == (1, rows) else None


def dtype(plan: TokenizerPlan, label: str, stored: Mapping[str, Any]) -> np.dtype:
  """Of a model's rows: the stored one, or float32 (float64) where dtypes meet or a mean is computed."""
  sources = [plan.fill[i] for i in np.flatnonzero(plan.rows_of[label] < 0).tolist() if i in plan.fill]
  kinds = {np.dtype(stored[key]) for key in (label, *(key for rows in sources for key, _ in rows))}
  if len(kinds) == 1 and not plan.padding.any() and all(len(rows) < 2 for rows in sources):
    return kinds.pop()
  return np.dtype(np.float64 if np.dtype(np.float64) in kinds else np.float32)


def embed_rows(
  plan: TokenizerPlan, label: str, reads: Mapping[str, np.ndarray], rows: slice = slice(None)
) -> np.ndarray:
  """A model's embeddings (or head) with the plan's tokenizer.

  Args:
    plan: of the merge.
    label: the model.
    reads: for every model that the plan takes rows from, its own `[rows, ...]`; mapped files will do.
    rows: of the result that are wanted.

  Returns:
    `[rows, ...]` in the dtype that `dtype` says; means are computed in float64.
  """
  ids = np.arange(plan.rows)[rows]
  padding = plan.padding[ids]
  kind = dtype(plan, label, {key: one.dtype for key, one in reads.items()})
  result = np.empty((len(ids), *reads[label].shape[1:]), kind)
  result[~padding] = _gather(plan, label, reads, ids[~padding], kind)
  if padding.any():
    result[padding] = _mean(plan, label, reads, kind)
  return result


def _gather(
  plan: TokenizerPlan, label: str, reads: Mapping[str, np.ndarray], ids: np.ndarray, kind: np.dtype
) -> np.ndarray:
  """The rows of tokens."""
  index = plan.rows_of[label][ids]
  result = np.zeros((len(ids), *reads[label].shape[1:]), kind)
  result[index >= 0] = reads[label][index[index >= 0]]
  for at in np.flatnonzero(index < 0):
    sources = [reads[key][row] for key, row in plan.fill[int(ids[at])]]
    if sources:
      result[at] = sources[0] if len(sources) == 1 else np.mean(sources, axis=0, dtype=np.float64)
  return result


def _mean(plan: TokenizerPlan, label: str, reads: Mapping[str, np.ndarray], kind: np.dtype) -> np.ndarray:
  """The mean of the rows of all tokens."""
  ids = np.flatnonzero(~plan.padding)
  blocks = (ids[start : start + _BLOCK] for start in range(0, len(ids), _BLOCK))
  return sum(_gather(plan, label, reads, block, kind).sum(0, dtype=np.float64) for block in blocks) / len(ids)


@dataclasses.dataclass(frozen=True)
class Remapped(View):
  """A checkpoint whose embeddings and head have the rows of a plan's tokenizer.

  Attributes:
    models: every model of the merge, by label.
    label: which of them this is a view of.
    plan: of the merge.
    remapped: the tensors that differ.
    turned: which of them are a single row with a column for every token.
  """

  models: Mapping[str, Checkpoint]
  label: str
  plan: TokenizerPlan
  remapped: frozenset[str]
  turned: frozenset[str]

  def result_dtype(self, name: str) -> np.dtype:
    """That of the model's own tensor."""
    return self.source.result_dtype(_name(self.source, name))

  def release(self, name: str) -> None:
    """Lets go of the model's own tensor."""
    self.source.release(_name(self.source, name))

  def _stored(self, name: str, index: Index | None) -> np.ndarray:
    if self.aliases.get(name, name) not in self.remapped:
      stored = self.source.read_alias(name) if name in self.aliases else self.source.read(name, index)
      return stored[index or ()] if name in self.aliases else stored
    reads = {
      key: self.models[key].read_alias(name)
      if name in self.models[key].aliases
      else self.models[key].read(_name(self.models[key], name))
      for key in _needed(self.plan, self.label)
    }
    if name in self.turned:
      turned = {key: value.T for key, value in reads.items()}
      return embed_rows(self.plan, self.label, turned).T[index or ()]
    rows, *rest = index or (slice(None),)
    return embed_rows(self.plan, self.label, reads, rows)[(slice(None), *rest)]


@dataclasses.dataclass(frozen=True)
class Reordered:
  """Statistics of a model's embeddings with the rows of a plan's tokenizer; 0 for a token that it lacks.

  Attributes:
    measured: of the model's own rows.
    rows: of every token, see `TokenizerPlan.rows_of`.
    turned: a single row with a column for every token.
  """

  measured: Readable
  rows: np.ndarray
  turned: bool

  @property
  def spec(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype as it is read."""
    own, count = self.measured.spec, len(self.rows)
    shape = (1, count) if self.turned else (count, *own.shape[1:])
    return jax.ShapeDtypeStruct(shape, own.dtype)

  def read(self) -> np.ndarray:
    """The numbers, on the host."""
    stored = self.measured.read()
    own = stored.T if self.turned else stored
    result = np.zeros((len(self.rows), *own.shape[1:]), own.dtype)
    result[self.rows >= 0] = own[self.rows[self.rows >= 0]]
    return result.T if self.turned else result

  def release(self) -> None:
    """Lets go of what reading took."""
    self.measured.release()

  def __str__(self) -> str:
    return str(self.measured)


def remap(plan: TokenizerPlan, label: str, models: Mapping[str, Checkpoint]) -> Checkpoint:
  """A model as a view with the plan's tokenizer; the model itself where nothing differs.

  A tied model gets a head of its own where another model has one: tokens that it lacks then have other rows
  there than in its embedding.

  Raises:
    ValueError: its embeddings cannot be found, or those of two models do not fit together.
  """
  source = models[label]
  names = vocabulary_tensors(source)
  same = np.array_equal(plan.rows_of[label], np.arange(plan.rows))
  if same and vocabulary_size(source) == plan.rows:
    return source
  specs, config = dict(source.specs), configured(source.config or {}, plan.config)
  tied = tensors.HEAD not in specs and tensors.head(source)
  if tied and any(tensors.HEAD in one.specs for one in models.values()):
    specs[tensors.HEAD], names = specs[tied], (*names, tensors.HEAD)
    config["tie_word_embeddings"] = True  # said, as the tensors no longer do
  turned = frozenset(name for name in names if _axis(specs[name].shape, vocabulary_size(source)) == 1)
  for name in names:
    stored = {key: _spec(models[key], name) for key in _needed(plan, label)}
    own, rest = specs[name].shape, slice(None, 1) if name in turned else slice(1, None)
    for key, spec in stored.items():
      if len(spec.shape) != len(own) or spec.shape[rest] != own[rest]:
        raise ValueError(
          f"{models[key].path}: tensor {name!r} is {list(spec.shape)}; expected rows as those of "
          f"{source.path}, {list(own)}."
        )
    kind = dtype(plan, label, {key: spec.dtype for key, spec in stored.items()})
    shape = (1, plan.rows) if name in turned else (plan.rows, *own[1:])
    specs[name] = jax.ShapeDtypeStruct(shape, kind)
  aliases = {alias: name for alias, name in source.aliases.items() if alias not in specs}
  return Remapped(source.path, specs, aliases, config, source, models, label, plan, frozenset(names), turned)


def _needed(plan: TokenizerPlan, label: str) -> tuple[str, ...]:
  """The models that a model's rows come from, itself first."""
  missing = (plan.fill[i] for i in np.flatnonzero(plan.rows_of[label] < 0).tolist() if i in plan.fill)
  return tuple(dict.fromkeys((label, *(key for rows in missing for key, _ in rows))))


def _name(checkpoint: Checkpoint, name: str) -> str:
  """The name that a model stores a tensor under: a tied head is its embedding."""
  return (tensors.head(checkpoint) or name) if name == tensors.HEAD else name


def _spec(checkpoint: Checkpoint, name: str) -> jax.ShapeDtypeStruct:
  canonical = checkpoint.aliases.get(name, _name(checkpoint, name))
  if canonical not in checkpoint.specs:
    raise ValueError(unknown("tensor", name, vocabulary_tensors(checkpoint), str(checkpoint.path)))
  return checkpoint.specs[canonical]
