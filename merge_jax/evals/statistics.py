"""What data-weighted merges need to know of a model: diagonal Fisher information, Gram matrices of inputs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.errors import unknown
from merge_jax.evals.batching import Bucket, bucket, encode
from merge_jax.evals.branches import Rows
from merge_jax.evals.splits import position
from merge_jax.evals.statistics_file import Statistics as Statistics
from merge_jax.evals.statistics_file import load as load
from merge_jax.evals.statistics_file import save as save
from merge_jax.evals.tasks import Example, Task
from merge_jax.evals.tokens import Tokens

Params = Mapping[str, Array]
Progress = Callable[[int], None]
PREDICTIONS = ("model", "data")


class Batch(NamedTuple):
  """Examples of similar length with equally many targets, padded.

  Attributes:
    rows: `[B, C, …]`, a row for each of C targets.
    lengths: int32 `[B, C]`, real tokens that are read of each row.
    right: int32 `[B]`, position of the right target.
    weights: float32 `[B]`, 1 for an example, 0 for padding.
    numbers: int32 `[B]`, of the examples among all.
  """

  rows: Bucket
  lengths: np.ndarray
  right: np.ndarray
  weights: np.ndarray
  numbers: np.ndarray


def sample(task: Task, limit: int, seed: int = 0) -> Task:
  """At most `limit` examples of a task, 0 for all: a random choice that depends on prompts and seed alone."""
  if not limit or limit >= len(task.examples):
    return task
  chosen = sorted(task.examples, key=lambda example: position(example.prompt, seed))[:limit]
  return dataclasses.replace(task, examples=tuple(chosen))


def batches(tasks: Sequence[Task], tokens: Tokens, *, batch_size: int = 8, **options: Any) -> list[Batch]:
  """Packs examples by their number of targets and by lengths rounded up to powers of two, or the longest.

  Args:
    tasks: the tasks; their metrics do not matter.
    tokens: the tokenizer.
    batch_size: examples in a batch.
    options: of `encode`.

  Raises:
    ValueError: a batch size below 1, no examples, or what `encode` refuses.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
  examples = [example for task in tasks for example in task.examples]
  if not examples:
    raise ValueError("There are no examples to measure.")
  rows = encode(tasks, tokens, **options)
  groups: dict[tuple[int, int, int], list[tuple[int, list[int]]]] = {}
  start, longest = 0, max(len(ids) - 1 for ids in rows.ids)
  for number, example in enumerate(examples):
    of = list(range(start, start + len(example.targets)))
    start += len(of)
    # More than the model's length would stretch dynamic rotations.
    length = min(_power(max(len(rows.ids[i]) - 1 for i in of)), longest)
    asked = _power(max(len(rows.ids[i]) - rows.starts[i] for i in of))
    groups.setdefault((len(of), length, asked), []).append((number, of))
  result = []
  for (count, length, asked), members in sorted(groups.items()):
    for at in range(0, len(members), batch_size):
      part = members[at : at + batch_size]
      result.append(_batch(rows, examples, part, batch_size, count, length, asked))
  return result


def _power(number: int) -> int:
  return 1 << (number - 1).bit_length()


def _batch(
  rows: Rows, examples: Sequence[Example], part: list[tuple[int, list[int]]], size: int, count: int,
  length: int, asked: int,
) -> Batch:  # fmt: skip
  weights = (np.arange(size) < len(part)).astype(np.float32)
  part = part + part[-1:] * (size - len(part))
  chosen = [(row,) for _, of in part for row in of]
  lengths = np.array([len(rows.ids[row]) - 1 for (row,) in chosen], np.int32).reshape(size, count)
  numbers = np.array([number for number, _ in part], np.int32)
  right = np.array([examples[number].answer for number in numbers], np.int32)
  return Batch(bucket(rows, chosen, size, count, (length, 0), asked), lengths, right, weights, numbers)


def fisher(
  apply: Callable[..., Array],
  params: Params,
  data: Sequence[Batch],
  *,
  predictions: str = "model",
  key: Array | None = None,
  progress: Progress | None = None,
) -> dict[str, Array]:
  """Diagonal Fisher information of a model, of the shapes of its parameters, float32.

      F = mean over examples x of E_y (∂ log p(y|x) / ∂θ)²

  Args:
    apply: `(params, tokens, positions) -> logits`.
    params: by name.
    data: from `batches`.
    predictions: what y is. "model": the model's own predictions, the Fisher information itself; with choices
      exactly, p being the softmax of their log-likelihoods; else a token drawn at each position after the
      target's tokens before it, an unbiased estimate. "data": the right target (the empirical Fisher).
    key: for the draws; `jax.random.key(0)` if None.
    progress: called with the number of examples done.

  A batch holds a gradient for each of its examples.

  Raises:
    ValueError: unknown predictions; weights, or a result, that are not finite.

  Sources: arXiv 2111.09832; Limitations of the Empirical Fisher Approximation (arXiv 1905.12558).
  """
  if predictions not in PREDICTIONS:
    raise ValueError(unknown("predictions", predictions, PREDICTIONS))
  key = jax.random.key(0) if key is None else key
  params = _sound(params)

  def of_example(params: Params, rows: Any, right: Any, number: Any) -> Params:
    def log_likelihoods(params: Params) -> tuple[Array, Array]:
      logits = jax.nn.log_softmax(apply(params, rows.tokens, rows.positions).astype(jnp.float32))
      draws = jax.random.categorical(jax.random.fold_in(key, number), jax.lax.stop_gradient(logits))
      single = rows.tokens.shape[0] == 1
      targets = draws if single and predictions == "model" else rows.targets
      taken = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
      sums = jnp.sum(jnp.where(rows.mask > 0, taken, 0.0), axis=1)
      values = sums if single else jax.nn.log_softmax(sums)
      exact = jnp.exp(values) if predictions == "model" else jax.nn.one_hot(right, values.size)
      return values, jnp.ones(1) if single else exact

    values, pullback, shares = jax.vjp(log_likelihoods, params, has_aux=True)

    def add(total: Params, choice: tuple[Array, Array]) -> tuple[Params, None]:
      (gradient,) = pullback(choice[0])
      return jax.tree.map(lambda t, g: t + choice[1] * g * g, total, gradient), None

    first = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, first, (jnp.eye(values.size), shares))[0]

  @functools.partial(jax.jit, donate_argnums=0)
  def step(total: Params, params: Params, batch: Batch) -> Params:
    over = jax.vmap(of_example, in_axes=(None, 0, 0, 0))
    each = over(params, batch.rows, batch.right, batch.numbers)
    weigh = functools.partial(jnp.tensordot, batch.weights, axes=1, precision="highest")
    return jax.tree.map(lambda t, f: t + weigh(f), total, each)

  total: Params = jax.tree.map(jnp.zeros_like, params)
  count = 0.0
  for batch in data:
    total = step(total, params, batch)
    if not count:
      _finite(total, "Fisher information")
    count += float(batch.weights.sum())
    if progress is not None:
      progress(int(count))
  return _finite({name: value / count for name, value in total.items()}, "Fisher information")


def gram(
  inputs: Callable[..., Mapping[str, Array]],
  params: Params,
  data: Sequence[Batch],
  *,
  progress: Progress | None = None,
) -> tuple[dict[str, Array], dict[str, str]]:
  """Gram matrices `XᵀX / tokens` of the inputs of every linear layer, `[in, in]`, float32.

  Args:
    inputs: `(params, tokens) -> {name of the weight: its input [rows, time, in]}`, such as `Model.inputs`.
    params: by name.
    data: from `batches`; of choices the right one is read.
    progress: called with the number of examples done.

  Returns:
    A matrix for every distinct input, and by name of each weight the name that its matrix has. Padding is
    left out; every token counts as much as any other.

  Raises:
    ValueError: weights, or a result, that are not finite.

  Source: Dataless Knowledge Fusion (arXiv 2212.09849).
  """
  params = _sound(params)
  owners: dict[str, str] = {}

  def distinct(params: Params, tokens: Array) -> dict[str, Array]:
    found = inputs(params, tokens)
    first: dict[int, str] = {}
    for name, x in found.items():
      owners[name] = first.setdefault(id(x), name)
    return {name: found[name] for name in first.values()}

  @functools.partial(jax.jit, donate_argnums=0)
  def step(total: Params, params: Params, tokens: Array, mask: Array) -> Params:
    def add(total: Array, x: Array) -> Array:
      x = jnp.where(mask[..., None], x.astype(jnp.float32), 0.0).reshape(-1, x.shape[-1])
      return total + jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.map(add, total, distinct(params, tokens))

  shapes = jax.eval_shape(distinct, params, jax.ShapeDtypeStruct((1, 1), jnp.int32))
  total: Params = {name: jnp.zeros((x.shape[-1],) * 2) for name, x in shapes.items()}
  tokens = examples = 0
  for batch in data:
    every = np.arange(len(batch.right))
    read, lengths = batch.rows.tokens[every, batch.right], batch.lengths[every, batch.right]
    mask = (np.arange(read.shape[1]) < lengths[:, None]) & (batch.weights[:, None] > 0)
    total = step(total, params, jnp.asarray(read), jnp.asarray(mask))
    if not examples:
      _finite(total, "Gram matrix")
    tokens, examples = tokens + int(mask.sum()), examples + int(batch.weights.sum())
    if progress is not None:
      progress(examples)
  return _finite({name: value / tokens for name, value in total.items()}, "Gram matrix"), owners


def _sound(params: Params) -> dict[str, Array]:
  """Parameters in float32; ValueError for one that is not finite."""
  params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
  for name, value in params.items():
    if not bool(jnp.all(jnp.isfinite(value))):
      raise ValueError(f"Tensor {name!r} of the model holds NaN or infinity; mend it first.")
  return params


def _finite(values: Params, what: str) -> dict[str, Array]:
  """The same; ValueError for what is not finite, which sums stay from then on."""
  for name, value in values.items():
    if not bool(jnp.all(jnp.isfinite(value))):
      raise ValueError(
        f"The {what} of tensor {name!r} is not finite, although the weights are: activations leave the range "
        "of float32; check the model."
      )
  return dict(values)
