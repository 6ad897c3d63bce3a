"""One candidate against its evaluation alone, the search's own overhead, and the same loop in PyTorch."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

import merge_jax as mj
from merge_jax import evals, models
from merge_jax.search import Budget, Fitness, Journal, Options, proposer, search, space
from merge_jax.training import puzzles

_MODELS = flags.DEFINE_integer("models", 8, "search: checkpoints in the pool.")
_EXAMPLES = flags.DEFINE_integer("examples", 450, "search: examples of each of the six tasks.")
_HIDDEN = flags.DEFINE_integer("hidden", 128, "search: width of the model.")
_LAYERS = flags.DEFINE_integer("layers", 2, "search: layers of the model.")


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
  """Median seconds of each call, in turns, so that a busy moment hits all of them."""
  for call in calls.values():
    call()
  times: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      times[name].append(time.perf_counter() - start)
  return {name: float(np.median(values)) for name, values in times.items()}


def make() -> tuple[dict[str, Any], list[dict[str, np.ndarray]], list[evals.Task]]:
  """A random pool of the quickstart's shape, and its tasks."""
  hidden = _HIDDEN.value
  config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97,
    "hidden_size": hidden, "intermediate_size": int(hidden * 2.75),
    "num_hidden_layers": _LAYERS.value, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 64, "tie_word_embeddings": True, "eos_token_id": 1,
  }  # fmt: skip
  init = models.build(config).init
  pool = [jax.device_get(init(jax.random.key(i))) for i in range(_MODELS.value + 1)]
  tasks = []
  for name in puzzles.PUZZLES:
    records = puzzles.generate(name, _EXAMPLES.value, 0)
    examples = tuple(evals.Example(r["prompt"], (r["target"],)) for r in records)
    tasks.append(evals.Task(name, "exact_match", examples))
  return config, pool, tasks[:6]


def suite(repeats: int) -> dict[str, Any]:
  """Candidate, evaluation alone, overhead, and PyTorch."""
  config, pool, tasks = make()
  model, tokens = models.build(config), evals.Tokens(puzzles.tokenizer(), 1)
  batches = evals.pack(evals.encode(tasks, tokens), batch_tokens=65_536)
  scorer = evals.make_scorer(model.apply, tasks, batches)
  base, experts = pool[0], pool[1:]
  prepared = jax.device_put(mj.prepare(mj.task_arithmetic(), experts, base=base))
  weights = np.full(len(experts), 1 / len(experts), np.float32)
  candidate = jax.jit(lambda p, w, data: scorer.function(mj.combine(p, w), data))
  alone = jax.jit(scorer.function)
  merged = jax.jit(mj.combine)(prepared, weights)
  calls: dict[str, Callable[[], Any]] = {
    "candidate": lambda: scorer.read(candidate(prepared, weights, scorer.batches)),
    "evaluation": lambda: scorer.read(alone(merged, scorer.batches)),
  }
  reference = torch_loop(config, base, experts, tasks, tokens)
  if reference is not None:
    calls["pytorch"] = lambda: reference(weights)
    ours, theirs = (calls[name]() for name in ("candidate", "pytorch"))
    np.testing.assert_allclose(list(ours.scores().values()), theirs, atol=1e-6)
  seconds = interleaved(calls, repeats)
  result: dict[str, Any] = {
    "parameters": sum(int(np.prod(s.shape)) for s in model.specs.values()),
    "models": len(experts), "tokens": batches.tokens, "padded_tokens": batches.padded,
    "seconds": seconds, "candidate_over_evaluation": seconds["candidate"] / seconds["evaluation"],
    "search_overhead_seconds": overhead(len(experts)),
  }  # fmt: skip
  if "pytorch" in seconds:
    result["pytorch_over_candidate"] = seconds["pytorch"] / seconds["candidate"]
  return result


def overhead(count: int, evaluations: int = 150) -> float:
  """Seconds a candidate of a whole search with free evaluations and a journal in memory."""
  fitness = Fitness(tuple("abcdef"), (1.0,) * 6, source="metric")
  options = Options("task_arithmetic", space("free", count), fitness, count)

  class Free:
    batch = 1

    def evaluate(self, candidates: Any, split: str) -> list[evals.Evaluation]:
      value = -float(np.square(candidates[0].point.array).sum())
      return [evals.Evaluation(dict.fromkeys(fitness.tasks, value))]

  start = time.perf_counter()
  search(proposer("cma_es", options), Free(), Journal(), fitness, Budget(evaluations))
  return (time.perf_counter() - start) / evaluations


def torch_loop(
  config: dict[str, Any],
  base: dict[str, np.ndarray],
  experts: list[dict[str, np.ndarray]],
  tasks: list[evals.Task],
  tokens: evals.Tokens,
) -> Callable[[np.ndarray], list[float]] | None:
  """Merge state dicts, load, forward in batches sorted by length, score; None without torch."""
  try:
    import torch
    import transformers
  except ImportError:
    print("PyTorch or transformers is not installed: no comparison (extra `parity`).")
    return None
  options = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).eval()
  state = [{n: torch.tensor(np.asarray(v)) for n, v in params.items()} for params in (base, *experts)]
  rows = evals.encode(tasks, tokens)
  order = sorted(range(len(rows.ids)), key=lambda i: len(rows.ids[i]))
  owner = np.repeat(np.arange(len(tasks)), [len(task.examples) for task in tasks])
  batches = [order[i : i + 512] for i in range(0, len(order), 512)]

  @torch.no_grad()
  def score(weights: np.ndarray) -> list[float]:
    merged = {}
    for name, start in state[0].items():
      merged[name] = start + sum(
        float(w) * (s[name] - start) for w, s in zip(weights, state[1:], strict=True)
      )
    model.load_state_dict(merged, strict=False)
    model.tie_weights()
    hits = np.zeros(len(order))
    for batch in batches:
      longest = max(len(rows.ids[i]) for i in batch)
      ids = torch.zeros((len(batch), longest), dtype=torch.long)
      wanted = torch.zeros((len(batch), longest), dtype=torch.bool)
      for at, i in enumerate(batch):
        ids[at, : len(rows.ids[i])] = torch.from_numpy(rows.ids[i].astype(np.int64))
        wanted[at, rows.starts[i] : len(rows.ids[i])] = True
      best = model(ids[:, :-1]).logits.argmax(-1)
      right = ((best == ids[:, 1:]) | ~wanted[:, 1:]).all(1)
      hits[batch] = right.numpy()
    return [float(hits[owner == task].mean()) for task in range(len(tasks))]

  return score
