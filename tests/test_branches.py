"""Choices that share a row with their prompt score as in rows of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import evals, models, sharding
from merge_jax.evals import metrics
from merge_jax.evals.branches import Rows, columns, groups
from merge_jax.evals.task_suite import TaskSuite
from merge_jax.models import attention
from merge_jax.training import puzzles
from tests import pools
from tests.further import further
from tests.golden import cases

ALWAYS = ("llama3", "qwen3_moe", "gemma3")
FURTHER = (
  "llama_yarn", "mistral", "qwen2_windows", "qwen3", "command_r_plus", "command_r7b", "mixtral", "gemma2",
)  # fmt: skip
FAMILIES = [*ALWAYS, *map(further, FURTHER)]
VOCABULARY = cases.SHAPE["vocab_size"]
# Tokens of each prompt and of its targets: single tokens, long choices, and tasks with one target.
SHAPES = [
  (12, (1, 1, 1)), (9, (3, 5, 2, 8)), (20, (4,)), (3, (2, 2)), (30, (1, 2)), (5, (9, 1, 20)), (6, (7,)),
]  # fmt: skip


def drawn(shapes):
  generator, ids, starts = np.random.default_rng(0), [], []
  for prompt, lengths in shapes:
    stem = generator.integers(0, VOCABULARY, prompt)
    ids += [np.append(stem, generator.integers(0, VOCABULARY, n)).astype(np.int32) for n in lengths]
    starts += [prompt] * len(lengths)
  return Rows(ids, starts, [len(lengths) for _, lengths in shapes])


ROWS = drawn(SHAPES)
TASKS = [evals.Task(str(i), "seen", (evals.Example("", ("x",) * n),)) for i, n in enumerate(ROWS.targets)]


@pytest.fixture
def likelihoods(monkeypatch):
  """A function `(params, batches)` for what is said of every target of `ROWS`, traceable."""
  seen = []

  def compute(given):
    seen.append(given[:3])
    return metrics.loss(given)

  monkeypatch.setitem(metrics.METRICS, "seen", evals.Metric("seen", "", -1.0, "either", ".4f", compute))

  def of(model, batches, mesh=None):
    scorer = evals.make_scorer(model.apply, TASKS, batches, mesh=mesh)

    def run(params, data):
      seen.clear()
      scorer.function(params, data)
      return list(seen)

    return run, scorer.batches

  return of


def same(made, expected):
  for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def built(name, **change):
  model = models.build(cases.config_of(name) | change)
  return model, cases.parameters({n: s.shape for n, s in model.specs.items()})


@pytest.mark.parametrize("name", FAMILIES)
def test_choices_in_one_row_score_as_in_rows_of_their_own(name, likelihoods):
  model, params = built(name)
  assert model.branches
  apart = evals.pack(ROWS, max_shapes=1)
  together = evals.pack(ROWS, groups=groups(ROWS, branches=True), max_shapes=2, batch_tokens=50)
  assert together.tokens < 0.7 * apart.tokens and any(len(b.tokens) > 1 for b in together.buckets)
  expected, made = (
    jax.jit(run)(params, data) for run, data in (likelihoods(model, one) for one in (apart, together))
  )
  same(made, expected)


def test_candidates_side_by_side_of_stacked_layers_on_a_mesh(likelihoods):
  model, params = built("qwen2_windows", num_hidden_layers=8)
  params = {n: 0.3 * x for n, x in params.items()}  # rounding errors must not grow with the depth
  expected, data = likelihoods(model, evals.pack(ROWS, max_shapes=1))
  expected = jax.jit(expected)(params, data)
  mesh = sharding.make_mesh("candidate:2,data:2,tensor:2")
  together = evals.pack(ROWS, groups=groups(ROWS, branches=True), max_shapes=1, multiple=2)
  run, data = likelihoods(model, together, mesh)
  placed = sharding.shardings(models.stack_specs(model.specs, model.stacks), mesh, axes=model.axes)
  stacked = jax.device_put(models.stack(params, model.stacks), placed)
  with jax.set_mesh(mesh):
    many = jax.vmap(
      lambda scale: run({n: scale * x for n, x in stacked.items()}, data), spmd_axis_name="candidate"
    )
    made = jax.jit(many)(jnp.array([2.0, 1.0]))
  same(jax.tree.map(lambda x: x[1], made), expected)


def test_single_tokens_are_read_from_one_row_by_any_model(likelihoods):
  """Without branches other choices repeat their prompt."""
  packed = groups(ROWS, branches=False)
  assert packed[0] == (0, 1, 2) and all(len(group) == 1 for group in packed[1:])
  assert [columns(ROWS, group) for group in packed[:2]] == [(12, 0), (11, 0)]
  model, params = built("llama_dynamic")
  assert not model.branches
  batches = evals.pack(ROWS, groups=packed, max_shapes=3)
  assert all(bucket.branches is None for bucket in batches.buckets)
  run, data = likelihoods(model, batches)
  losses = jax.jit(run)(params, data)[0][0]
  logits = jax.jit(model.apply)(params, jnp.asarray(ROWS.ids[0])[None])[0, -2]
  np.testing.assert_allclose(losses[0, 0], -jax.nn.log_softmax(logits)[ROWS.ids[0][-1]], rtol=1e-5)


def test_a_suite_counts_a_prompt_once_and_says_where_it_cannot(tmp_path):
  tasks = [evals.load(str(path)) for path in pools.make_tasks(tmp_path, 6)]
  model, tokens = models.build(pools.CONFIG), evals.Tokens(puzzles.tokenizer(), 1)
  shared, apart = (
    TaskSuite({"search": tasks}, model.apply, tokens, branches=can, vocabulary=97) for can in (True, False)
  )
  choose = tasks[1]
  prompts = tokens.prompts([e.prompt for e in choose.examples])
  ends = sum(len(t) for e in choose.examples for t in e.targets)  # a letter is a token, and one more the end
  assert shared.tokens("search", ["choose"]) == sum(map(len, prompts)) + ends
  assert apart.tokens("search", ["choose"]) == 3 * sum(map(len, prompts)) + ends
  assert shared.tokens("search", ["copy"]) == apart.tokens("search", ["copy"])
  assert shared.notes == () and "takes no branches" in apart.notes[0]
  assert shared.identity() == apart.identity()


def test_prompts_of_branches_stay_on_the_fused_kernel(monkeypatch):
  """Lowered for CUDA without a device."""
  library = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)
  model = models.build(cases.config_of("llama3"), attention="cudnn")

  def apply(params, tokens, positions, branches):
    return model.apply(params, tokens, positions, jnp.bfloat16, branches=branches)

  tokens, positions, tails = (jax.ShapeDtypeStruct((2, n), jnp.int32) for n in (74, 5, 10))
  branches = (jax.ShapeDtypeStruct((2,), jnp.int32), tails, tails)
  lowered = jax.jit(apply).trace(model.specs, tokens, positions, branches).lower(lowering_platforms=("cuda",))
  assert lowered.as_text().count("@__cudnn$fmhaSoftmax") == 1


def test_a_branch_sees_its_prompt_and_itself():
  tree = attention.Tree.of(*map(jnp.array, ([2], [[2, 3, 2, 0]], [[1, 1, 2, -1]])), time=7)
  seen = tree.behind(jnp.array([[1, 4, 5]]))
  assert seen.tolist() == [[
    [1, 0, -1, -1, -1, -1, -1], [3, 2, -1, 1, 0, -1, -1], [2, 1, -1, -1, -1, 0, -1],
  ]]  # fmt: skip
