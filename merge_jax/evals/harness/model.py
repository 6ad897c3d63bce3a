"""A language model for lm-eval: its requests in our passes of few fixed shapes, on any mesh."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from merge_jax import sharding
from merge_jax.errors import shown
from merge_jax.evals import generation, replies
from merge_jax.evals import requests as asked
from merge_jax.evals.batching import Batches, pack
from merge_jax.evals.branches import Rows, groups
from merge_jax.evals.objective import using
from merge_jax.evals.scoring import Apply, reader
from merge_jax.evals.tokens import Tokens
from merge_jax.sharding import Layout

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request's texts, and the tokens of its context and its continuation."""


@dataclasses.dataclass(frozen=True)
class Face:
  """What is known of models of one shape.

  Attributes:
    apply, generate: see `make_scorer` and `TaskSuite`.
    tokens: the tokenizer.
    vocabulary, max_length: of the model.
    branches: whether `apply` takes branches.
    max_shapes, batch_tokens: see `pack`.
    dtype: of the computation.
    most: most tokens of a text where a request does not say it.
  """

  apply: Apply
  generate: generation.Generate | None
  tokens: Tokens
  vocabulary: int
  max_length: int
  branches: bool = False
  max_shapes: int = 4
  batch_tokens: int = 65_536
  dtype: Any = None
  most: int = 256


class _Programs(NamedTuple):
  score: Callable[..., Any]
  generate: Callable[..., Any]


class LanguageModel(TemplateLM):
  """Answers lm-eval's requests; `on` says with which parameters.

  Every call packs what it is asked into at most `max_shapes` shapes and compiles one program for each;
  requests of one context share it (see `branches`). Programs stay for other parameters.

  Args:
    face: of the model.
    layout: the mesh, whose axes divide the rows of each pass; None: the default device.

  Raises (its methods):
    ValueError: sampling, or a text that the model has no room for.
  """

  def __init__(self, face: Face, layout: Layout | None = None):
    super().__init__()
    self.face, self.layout = face, layout
    whole = None if layout is None else layout.replicated
    read = reader(face.apply, dtype=face.dtype)
    options = {} if face.dtype is None else {"dtype": face.dtype}

    def generate(params: Any, *given: Any, most: int) -> Any:
      assert face.generate is not None  # `generate_until` looks first
      return face.generate(params, *given, most, **options)

    self._programs = _Programs(
      jax.jit(lambda *x: read(*x)[:3], out_shardings=whole),
      jax.jit(generate, static_argnames="most", out_shardings=whole),
    )
    self._params: Any = None

  def on(self, params: Any) -> "LanguageModel":
    """The same programs with other parameters."""
    other = copy.copy(self)
    other._params = params
    return other

  @property
  def eot_token_id(self) -> int:
    """The end-of-text token."""
    if self.face.tokens.eos is None:
      raise ValueError(f"{self.face.tokens.source} has no end-of-text token, which lm-eval needs.")
    return self.face.tokens.eos

  @property
  def prefix_token_id(self) -> int:
    """What a text without context begins with."""
    first = self.face.tokens.first
    return self.eot_token_id if first is None else first

  @property
  def max_length(self) -> int:
    """Most tokens of a context and its continuation."""
    return self.face.max_length

  @property
  def tokenizer_name(self) -> str:
    """What tells tokenizers apart in the library's cache of requests."""
    return self.face.tokens.source.replace("/", "__")

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The template's text, for logs."""
    return self.face.tokens.chat.text if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """Messages as one text."""
    if not add_generation_prompt:
      raise ValueError("A task that begins the assistant's answer (gen_prefix) cannot be asked as a chat.")
    return self.face.tokens.chat([(one["role"], one["content"]) for one in chat_history])

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    """Token ids, with the special tokens of the tokenizer unless the text begins with them."""
    return asked.encode(self.face.tokens, string, add_special_tokens)

  def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_more: Any) -> list[tuple[float, bool]]:
    targets: list[int] = []
    rows, last = Rows([], [], targets), None
    for texts, context, continuation in requests:
      rows.ids.append(row := asked.row(context, continuation, self.max_length))
      rows.starts.append(len(row) - len(continuation))
      same = texts is not None and bool(texts[0]) and texts[0] == last and rows.starts[-1] == rows.starts[-2]
      if same and targets[-1] < asked.MOST:
        targets[-1] += 1
      else:
        targets.append(1)
      last = None if texts is None else texts[0]
    batches = pack(
      rows, groups=groups(rows, self.face.branches), max_shapes=self.face.max_shapes,
      batch_tokens=self.face.batch_tokens, vocabulary=self.face.vocabulary, multiple=self._multiple,
    )  # fmt: skip
    losses, exact = self._scored(batches)
    found = [(-float(loss), bool(hit == 1)) for loss, hit in zip(losses, exact, strict=True)]
    for (texts, _, _), one in zip(requests, found, strict=True):
      if texts is not None:
        self.cache_hook.add_partial("loglikelihood", texts, one)
    return found

  def _scored(self, batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    with using(self.layout):
      parts = [
        self._programs.score(self._params, one) for bucket in batches.buckets for one in self._passes(bucket)
      ]
    losses, _, exact = (
      np.concatenate([np.asarray(part[i]).reshape(-1) for part in parts])[batches.order] for i in range(3)
    )
    return losses, exact

  def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
    """Log-likelihood of whole texts, window by window; each token is predicted once."""
    windows: list[Encoded] = []
    owners = []
    for number, request in enumerate(requests):
      ids = self.tok_encode(request.args[0])
      for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
        windows.append((None, *make_disjoint_window(pair)))
        owners.append(number)
    found = np.zeros(len(requests))
    if windows:
      np.add.at(found, owners, [value for value, _ in self._loglikelihood_tokens(windows)])
    for request, value in zip(requests, found.tolist(), strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
    return found.tolist()

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Greedy texts up to the strings that end them."""
    if self.face.generate is None:
      raise ValueError("This model cannot generate texts; give generate= beside an apply of your own.")
    wanted = []
    for request in requests:
      context, options = request.args
      limit, stop = asked.limits(options, self.face.most)
      room = self.max_length - limit
      if room < 1:
        raise ValueError(
          f"Task {request.task_name}: {limit} tokens are to be generated and the model takes "
          f"{self.max_length} in all; give the task a smaller max_gen_toks."
        )
      ids = self.tok_encode(context)[-room:]
      if not ids:
        raise ValueError(f"Task {request.task_name}: the prompt {shown(context)} has no tokens.")
      wanted.append(generation.Wanted(np.asarray(ids, np.int32), limit, stop))
    made = generation.packed(
      self.face.generate, wanted, self.face.tokens, vocabulary=self.face.vocabulary,
      max_shapes=self.face.max_shapes, batch_tokens=self.face.batch_tokens, multiple=self._multiple,
    )  # fmt: skip
    rows: list[np.ndarray] = []
    with using(self.layout):
      for most, prompts in zip(made.most, made.data.prompts, strict=True):
        for one in self._passes(prompts):
          rows += list(np.asarray(self._programs.generate(self._params, *one, made.data.moves, most=most)))
    found = []
    for request, place, one in zip(requests, made.data.order, wanted, strict=True):
      found.append(text := replies.cut(self.face.tokens.text(rows[place]), one.stop))
      self.cache_hook.add_partial("generate_until", request.args, text)
    return found

  @property
  def _multiple(self) -> int:
    return 1 if self.layout is None else sharding.row_count(self.layout.mesh)

  def _passes(self, many: Any) -> Iterator[Any]:
    """Each pass on the devices, its rows divided."""
    for i in range(len(many.tokens)):
      one = jax.tree.map(lambda x, i=i: x[i], many)
      if self.layout is None:
        yield one
      else:
        put = functools.partial(sharding.put, mesh=self.layout.mesh, spec=P(sharding.ROWS))
        yield jax.tree.map(put, one)
