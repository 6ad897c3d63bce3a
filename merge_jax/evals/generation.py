"""Texts that a model generates for the tasks that ask for them, in the jitted program of all scores."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from merge_jax import sharding
from merge_jax.evals import metrics, replies
from merge_jax.evals.batching import cuts, passes
from merge_jax.evals.branches import Rows
from merge_jax.evals.stopping import automaton
from merge_jax.evals.tasks import Task
from merge_jax.evals.tokens import Tokens

Generate = Callable[..., Array]
"""`(params, tokens, starts, states, limits, moves, most, dtype=) -> tokens`, see `models.generation`."""


class Prompts(NamedTuple):
  """Prompts of similar length, padded on the right; C chunks of R.

  Attributes:
    tokens: int32 `[C, R, T]`.
    starts: int32 `[C, R]`, their lengths.
    states: int32 `[C, R]`, of the automaton of their task; -1 for padding.
    limits: int32 `[C, R]`, most tokens that are generated.
  """

  tokens: np.ndarray
  starts: np.ndarray
  states: np.ndarray
  limits: np.ndarray


class Data(NamedTuple):
  """What the program reads.

  Attributes:
    prompts: in few shapes.
    order: int32 `[examples]`, where in the concatenated prompts each example lies.
    moves: int32 `[states, vocabulary]`, when texts end.
  """

  prompts: tuple[Prompts, ...]
  order: np.ndarray
  moves: np.ndarray


@dataclasses.dataclass(frozen=True)
class Generation:
  """The examples of some tasks whose texts are generated.

  Attributes:
    generate: of the model.
    tokens: the tokenizer.
    data: see there.
    most: most tokens of a text in each shape.
  """

  generate: Generate
  tokens: Tokens
  data: Data
  most: tuple[int, ...]

  def function(self, params: Any, data: Data, dtype: Any = None) -> Array:
    """The texts of all examples, int32 `[examples, most]`, -1 after their ends; traceable."""
    options = {} if dtype is None else {"dtype": dtype}
    found = []
    for most, prompts in zip(self.most, data.prompts, strict=True):

      def run(one: Prompts, most: int = most) -> Array:
        return self.generate(params, *one, data.moves, most, **options)

      if len(prompts.tokens) == 1:
        made = run(jax.tree.map(lambda x: x[0], prompts))
      else:
        made = jax.lax.map(run, prompts).reshape(-1, most)
      found.append(jnp.pad(made, ((0, 0), (0, max(self.most) - most)), constant_values=-1))
    return jnp.concatenate(found)[data.order]

  def placed(self, mesh: Mesh | None) -> Any:
    """The data on the devices, prompts divided over the rows of a mesh."""
    if mesh is None:
      return jax.device_put(self.data)
    put: Any = sharding.put
    prompts = jax.tree.map(lambda x: put(x, mesh, P(None, sharding.ROWS)), self.data.prompts)
    return Data(prompts, put(self.data.order, mesh, P()), put(self.data.moves, mesh, P()))

  def hits(self, tasks: Sequence[Task], texts: np.ndarray) -> np.ndarray:
    """What the text of each example of all tasks is worth, 1 if it is right, 0 without one: `[examples]`."""
    rows, result = iter(texts), []
    for task in tasks:
      for example in task.examples:
        if not generates(task):
          result.append(0.0)
          continue
        text, right = self.tokens.text(next(rows)), example.targets[example.answer]
        if example.asked and example.asked.grade:
          result.append(example.asked.grade(replies.cut(text, task.options.stop)))
        else:
          result.append(float(replies.agrees(text, right, task.options)))
    return np.array(result, np.float64)

  @property
  def count(self) -> int:
    """Tokens that are read or written, at most."""
    return sum(int((x.starts + x.limits)[x.states >= 0].sum()) for x in self.data.prompts)

  @property
  def padded(self) -> int:
    """The same with padding."""
    return sum(
      x.starts.size * (x.tokens.shape[-1] + n) for x, n in zip(self.data.prompts, self.most, strict=True)
    )


def generates(task: Task) -> bool:
  """Whether the task is scored by what a model writes."""
  return metrics.named(task.metric).generates


def prepare(
  generate: Generate | None,
  tasks: Sequence[Task],
  rows: Rows,
  tokens: Tokens,
  *,
  vocabulary: int,
  max_length: int | None = None,
  max_shapes: int = 4,
  batch_tokens: int = 16_384,
  multiple: int = 1,
) -> Generation | None:
  """Packs the prompts of the tasks that are scored by generated texts; None where no task is.

  Args:
    generate: of the model; None where it has none.
    tasks: all of them.
    rows: of `encode`, whose prompts are taken.
    tokens: the tokenizer.
    vocabulary: of the model.
    max_length, max_shapes, batch_tokens, multiple: see `encode` and `pack`.

  Raises:
    ValueError: a model that cannot generate, or a prompt that leaves too little room.
  """
  owners = [task for task in tasks for example in task.examples for _ in example.targets]
  chosen = [(row, task) for row, task in enumerate(owners) if generates(task)]
  if not chosen:
    return None
  if generate is None:
    raise ValueError(
      f"Task {chosen[0][1].name!r} is scored by {chosen[0][1].metric}, which needs a built-in model; give "
      "generate= beside an apply of your own."
    )
  for row, task in chosen:
    length, most = rows.starts[row], task.options.max_tokens
    if max_length is not None and length + most > max_length:
      raise ValueError(
        f"Task {task.name!r}: a prompt of {length} tokens and max_tokens {most} are more "
        f"than the {max_length} that the model takes; lower max_tokens in the first line of the task's file."
      )
  wanted = [
    Wanted(rows.ids[row][: rows.starts[row]], task.options.max_tokens, task.options.stop)
    for row, task in chosen
  ]
  return packed(
    generate, wanted, tokens, vocabulary=vocabulary, max_shapes=max_shapes, batch_tokens=batch_tokens,
    multiple=multiple,
  )  # fmt: skip


class Wanted(NamedTuple):
  """A text that is to be generated.

  Attributes:
    prompt: int32 `[T]`, 1 token or more.
    limit: most tokens that are generated.
    stop: strings that end the text.
  """

  prompt: np.ndarray
  limit: int
  stop: tuple[str, ...]


def packed(
  generate: Generate,
  wanted: Sequence[Wanted],
  tokens: Tokens,
  *,
  vocabulary: int,
  max_shapes: int = 4,
  batch_tokens: int = 16_384,
  multiple: int = 1,
) -> Generation:
  """Texts packed into few shapes; see `prepare`."""
  lengths, limits = (np.array(x) for x in zip(*((len(w.prompt), w.limit) for w in wanted), strict=True))
  stops = [one.stop for one in wanted]
  texts, openings = tokens.vocabulary(vocabulary) if any(stops) else ([""] * vocabulary, None)
  moves, first = automaton(texts, stops, [end for end in tokens.ends if end < vocabulary], openings)
  order = np.lexsort((lengths, limits))
  shapes, places, start, base, most = [], np.zeros(len(order), np.int32), 0, 0, []
  for end in cuts(lengths[order], limits[order], max_shapes):
    some = order[start:end]
    stem, longest = int(lengths[some].max()), int(limits[some].max())
    chunks, height = passes(len(some), stem + longest, len(some) * vocabulary, batch_tokens, multiple)
    shape = (chunks * height,)
    one = Prompts(
      np.zeros((*shape, stem), np.int32), np.ones(shape, np.int32), np.full(shape, -1, np.int32),
      np.ones(shape, np.int32),
    )  # fmt: skip
    for at, i in enumerate(some):
      one.tokens[at, : lengths[i]] = wanted[i].prompt
    rows_of = np.arange(len(some))
    for values, every in ((one.starts, lengths), (one.limits, limits), (one.states, np.array(first))):
      values[rows_of] = every[some]
    places[some] = base + rows_of
    shapes.append(Prompts(*(x.reshape(chunks, height, *x.shape[1:]) for x in one)))
    base, start = base + chunks * height, end
    most.append(longest)
  return Generation(generate, tokens, Data(tuple(shapes), places, moves), tuple(most))
