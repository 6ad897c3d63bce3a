"""Schedules, parts of batches, dtypes, LoRA, and checkpoints along a run."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from merge_jax import checkpoints, models, sharding
from merge_jax.training import (
  Recipe,
  Stopped,
  along,
  begin,
  continued,
  loop,
  lora,
  pool,
  read_recipe,
  refuse_written,
  result,
  schedule,
  states,
  train,
  train_into,
)
from tests import pools
from tests.further import further
from tests.test_launch import launch
from tests.test_training import SMALL, apply, equal, make_corpus, params, standard_promotion

__all__ = ["params", "standard_promotion"]  # fixtures

UP, DOWN = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down"))


def linear_apply(params, tokens, asked, dtype=jnp.float32, remat=False):
  """Logits from the token alone, through two linear layers by their Hugging Face names."""
  x = params["embed"][jnp.take_along_axis(tokens, asked, 1)].astype(dtype)
  for name in (UP, DOWN):
    x = jnp.tanh(x @ params[name].astype(dtype).T)
  return x @ params["head"].astype(dtype)


@pytest.fixture
def layers(params):
  a, b = jax.random.split(jax.random.key(1))
  return params | {UP: 0.5 * jax.random.normal(a, (6, 8)), DOWN: 0.5 * jax.random.normal(b, (8, 6))}


def test_the_default_schedule_is_that_of_optax():
  for steps, longer, warmup in ((45, 0, 20), (30, 70, 3), (9, 0, 0)):
    recipe = Recipe(**SMALL | {"steps": steps, "schedule_steps": longer, "warmup": warmup})
    given = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warmup, max(steps, longer))
    counts = jnp.arange(recipe.horizon + 3)
    for one, other in ((schedule.rate(recipe), given), (jax.jit(schedule.rate(recipe)), jax.jit(given))):
      np.testing.assert_array_equal(one(counts), other(counts))
    old = optax.inject_hyperparams(optax.adamw)(given, b2=recipe.b2, weight_decay=recipe.weight_decay)
    zeros = {"x": jnp.zeros(3)}
    new = loop.optimizer_of(recipe).init(zeros)
    jax.tree.map(np.testing.assert_array_equal, new[1], old.init(zeros))


@pytest.mark.parametrize("decay", ["cosine", "linear", "minus_sqrt", "none"])
@pytest.mark.parametrize(("warmup", "decay_steps"), [(10, 30), (10, 0), (0, 100), (0, 0)])
def test_the_rate_rises_stays_and_falls(decay, warmup, decay_steps):
  decay_steps = decay_steps if decay != "none" else 0
  recipe = Recipe(**SMALL | {"steps": 100, "decay": decay, "warmup": warmup, "decay_steps": decay_steps})
  t = np.arange(110)
  start = 100 - decay_steps if decay_steps else warmup
  x = np.clip((t - start) / (100 - start), 0, 1)
  falls = {"cosine": (1 + np.cos(np.pi * x)) / 2, "linear": 1 - x, "minus_sqrt": 1 - np.sqrt(x), "none": 1.0}
  rises = np.minimum(t / warmup, 1) if warmup else np.ones(110)
  expected = recipe.learning_rate * rises * falls[decay]
  np.testing.assert_allclose(schedule.rate(recipe)(jnp.asarray(t)), expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("longest", [20, further(200)])
@pytest.mark.parametrize(("decay", "at"), [("linear", 30), ("minus_sqrt", 20), ("cosine", 23)])
def test_a_decay_branches_off_a_constant_run(params, longest, decay, at):
  """As if it had been told from the start, wherever a call of steps ends."""
  data = make_corpus(longest)
  full = SMALL | {"steps": 50, "warmup": 5, "weight_decay": 0.1, "decay": decay, "decay_steps": 20}
  whole = train(apply, begin(params, Recipe(**full)), data, Recipe(**full))
  constant = Recipe(**full | {"steps": at, "decay": "none", "decay_steps": 0})
  state = train(apply, begin(params, constant), data, constant)
  assert state.step == at
  assert jax.tree.structure(state.optimizer) == jax.tree.structure(whole.optimizer)
  branch = train(apply, state, data, Recipe(**full))
  assert equal(branch, whole) and branch.tokens == whole.tokens


@pytest.mark.parametrize("longest", [20, 200])
def test_parts_of_a_batch_are_one_batch(params, longest):
  """The mean is over all target tokens: examples of 2 to 20 of them weigh as they do together."""
  data = make_corpus(longest)
  recipe = SMALL | {"steps": 24, "batch_size": 12, "warmup": 2, "mixture": {"short": 1.0, "choose": 1.0}}
  one = train(apply, begin(params, Recipe(**recipe)), data, Recipe(**recipe))
  for parts in (3, 12):
    split = Recipe(**recipe | {"accumulate": parts})
    many = train(apply, begin(params, split), data, split)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-5)
    for name, value in many.params.items():
      np.testing.assert_allclose(value, one.params[name], atol=2e-5)


def test_the_computation_has_the_dtype_and_all_that_is_kept_is_float32(layers):
  seen = []

  def watched(params, tokens, asked, **options):
    seen.append((options, {x.dtype for x in params.values()}))
    return linear_apply(params, tokens, asked, **options)

  data, recipe = make_corpus(), SMALL | {"steps": 20, "warmup": 2}
  losses = {}
  for more in ({}, {"dtype": "bfloat16", "remat": True, "accumulate": 2}):
    state = train(watched, begin(layers, Recipe(**recipe | more)), data, Recipe(**recipe | more))
    losses[len(more)] = np.array(state.losses)
    floats = [x for x in jax.tree.leaves((state.params, state.optimizer)) if x.dtype != jnp.int32]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
  assert seen[0] == ({}, {jnp.dtype("float32")})
  assert seen[-1] == ({"dtype": jnp.dtype("bfloat16"), "remat": True}, {jnp.dtype("float32")})
  difference = np.abs(losses[3] - losses[0])
  assert 0 < difference.max() < 0.05


def test_lora_trains_factors_alone(layers, tmp_path):
  """`W + s B A` in float64; the adapter on disk stands for the same parameters."""
  recipe = Recipe(
    **SMALL | {"steps": 40, "warmup": 2, "lora_rank": 2, "lora_alpha": 3.0, "learning_rate": 0.1}
  )
  first = begin(layers, recipe)
  shapes = {name: x.shape for name, x in first.params.items()}
  stem = UP.removesuffix(".weight")
  assert len(shapes) == 4 and shapes[f"{stem}.lora_A.weight"] == (2, 8)
  assert shapes[f"{stem}.lora_B.weight"] == (6, 2) and not np.any(first.params[f"{stem}.lora_B.weight"])
  assert 0.1 < np.abs(first.params[f"{stem}.lora_A.weight"]).max() <= 8**-0.5
  for name, value in result(first, recipe).items():
    np.testing.assert_array_equal(value, layers[name])

  trained = train(linear_apply, first, make_corpus(), recipe)
  assert trained.final_loss < trained.losses[0]
  made = result(trained, recipe)
  for name in (UP, DOWN):
    a, b = (np.asarray(trained.params[f"{name[:-7]}.lora_{k}.weight"], np.float64) for k in "AB")
    np.testing.assert_allclose(made[name], layers[name] + 1.5 * b @ a, rtol=1e-6, atol=1e-6)
    assert np.abs(made[name] - layers[name]).max() > 0.01
  for name in ("embed", "head"):
    assert made[name] is trained.frozen[name] is layers[name]

  checkpoints.write(tmp_path / "base", layers)
  pool.save_adapter(tmp_path / "a", trained.params, recipe, "base", pool.describe(recipe, trained))
  assert {path.name for path in (tmp_path / "a").iterdir()} == {
    "adapter_config.json", "adapter_model.safetensors", "training.json",
  }  # fmt: skip
  config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
  assert config["target_modules"] == ["down_proj", "up_proj"] and config["lora_alpha"] == 3
  read = checkpoints.with_adapter(checkpoints.open(tmp_path / "base"), tmp_path / "a").load()
  for name, value in made.items():
    np.testing.assert_allclose(read[name], value, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_a_factor_is_that_of_the_product(layers):
  """The first step of B is along `s dW Aᵀ`, in the direction of its signs (Adam); A does not move yet."""
  recipe = Recipe(**SMALL | {"steps": 1, "warmup": 0, "lora_rank": 2, "clip": 1e9})
  data = make_corpus()
  first = {name: np.asarray(x) for name, x in begin(layers, recipe).params.items()}
  trained = train(linear_apply, begin(layers, recipe), data, recipe)
  ((batch, _),) = loop.batches(data, recipe, 0)

  def loss(params):
    logits = linear_apply(params, batch.tokens[0], batch.positions[0])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets[0])
    return jnp.sum(losses * batch.mask[0])

  slopes = jax.grad(loss)(layers)
  for name in (UP, DOWN):
    a, b = (f"{name[:-7]}.lora_{k}.weight" for k in "AB")
    np.testing.assert_array_equal(trained.params[a], first[a])
    slope = np.asarray(slopes[name]) @ first[a].T
    sure = np.abs(slope) > 1e-4
    assert sure.any()
    np.testing.assert_allclose(trained.params[b][sure], -1e-3 * np.sign(slope[sure]), rtol=1e-3)


def test_what_lora_adapts():
  def names(config):
    return lora.targets(models.build(config).specs)

  attention = [f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkvo"]
  feed = [f"model.layers.0.mlp.{x}_proj.weight" for x in ("gate", "up", "down")]
  small = pools.CONFIG | {"num_hidden_layers": 1}
  assert sorted(names(small)) == sorted(attention + feed)
  experts = small | {"num_local_experts": 2, "model_type": "mixtral"}
  inside = [f"model.layers.0.block_sparse_moe.experts.{i}.w{j}.weight" for i in (0, 1) for j in (1, 2, 3)]
  assert sorted(names(experts)) == sorted(attention + inside)  # the router is none
  cohere = small | {"model_type": "cohere", "use_qk_norm": True}
  assert sorted(names(cohere)) == sorted(attention + feed)  # norms of heads are matrices, too


@pytest.mark.parametrize(
  ("params", "rank", "message"),
  [
    ({"w": np.ones((4, 4))}, 2, "lora_rank is 2, but no parameter is a matrix of attention or feed-forward"),
    ({UP: np.ones((4, 8))}, 5, "lora_rank is 5; expected at most 4, the smaller side of 'model.*up_proj"),
  ],
)
def test_lora_without_a_place_is_refused(params, rank, message):
  with pytest.raises(ValueError, match=message):
    begin(params, Recipe(**SMALL | {"lora_rank": rank}))


@pytest.mark.thorough
def test_lora_on_a_mesh_continues_and_is_the_same(tmp_path):
  """Factors are cut as their matrix; a state holds them alone; parts of batches and bfloat16 go along."""
  model, data = models.build(pools.CONFIG | {"num_hidden_layers": 1}), make_corpus()
  more = {"lora_rank": 4, "accumulate": 2, "dtype": "bfloat16", "remat": True}
  recipe = Recipe(steps=22, learning_rate=1e-2, batch_size=8, warmup=2, mixture={"short": 1.0}, **more)
  mesh = sharding.make_mesh("fsdp:4,tensor:2")
  placed = jax.jit(model.init, out_shardings=sharding.shardings(model.specs, mesh))(jax.random.key(0))
  whole = train(model.apply, begin(model.init(jax.random.key(0)), recipe), data, recipe)
  first = begin(placed, recipe, mesh)
  for name, value in first.params.items():
    base = (*placed[f"{name.split('.lora_')[0]}.weight"].sharding.spec, None)
    spec = (None, base[1]) if ".lora_A." in name else (base[0], None)
    assert tuple(value.sharding.spec) == spec
  given = dict(params=placed, data=data, recipe=recipe, folder=tmp_path, mesh=mesh)
  with pytest.raises(Stopped):
    continued(model.apply, **given, stop=lambda: True)
  (saved,) = tmp_path.glob("step-*")
  assert not any("embed" in name for name in checkpoints.open(saved).specs)
  again = continued(model.apply, **given)
  np.testing.assert_allclose(again.losses, whole.losses, rtol=2e-2)
  made = result(again, recipe)
  for name, value in result(whole, recipe).items():
    assert made[name].sharding == placed[name].sharding
    np.testing.assert_allclose(made[name], value, atol=1e-2)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"decay": "cosin"}, "unknown decay 'cosin'; did you mean 'cosine'"),
    ({"decay": 1}, "decay is 1"),
    ({"decay_steps": -1}, "decay_steps is -1; expected a whole number >= 0"),
    ({"decay_steps": 2.5}, "decay_steps is 2.5"),
    ({"decay_steps": 26}, "decay_steps is 26; expected at most the 25 steps after the warm-up"),
    ({"decay_steps": 5, "decay": "none"}, "decay_steps is 5; expected at most 0 with decay none"),
    ({"accumulate": 0}, "accumulate is 0; expected a whole number >= 1"),
    ({"accumulate": 3}, "batch_size is 4; expected a multiple of accumulate, 3"),
    ({"accumulate": float("nan")}, "accumulate is nan"),
    ({"dtype": "float16"}, "unknown dtype 'float16'; "),
    ({"remat": "yes"}, "remat is 'yes'; expected true or false"),
    ({"lora_rank": -1}, "lora_rank is -1"),
    ({"lora_rank": 1.5}, "lora_rank is 1.5"),
    ({"lora_rank": 2, "lora_alpha": float("inf")}, "lora_alpha is inf; expected a finite number"),
    ({"lora_rank": 2, "lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"lora_rank": 2, "lora_alpha": -2.0}, "lora_alpha is -2.0; expected a number >= 0"),
    ({"lora_alpha": 2.0}, "lora_alpha is 2, but lora_rank is 0"),
  ],
)
def test_numbers_are_checked(change, message):
  with pytest.raises(ValueError, match=f"^config: {message}"):
    read_recipe(SMALL | change, "config")


def test_the_curve_is_thin():
  losses = np.arange(1234.0).tolist()
  points = pool.curve(losses)
  steps = [step for step, _ in points]
  assert 90 < len(points) <= 100 and steps[-1] == 1234 and set(np.diff(steps)) == {13, 1234 - steps[-2]}
  for (before, _), (step, mean) in itertools.pairwise([(0, 0.0), *points]):
    np.testing.assert_allclose(mean, np.mean(losses[before:step]), rtol=1e-5)
  assert pool.curve([]) == [] and pool.curve([2.0]) == [[1, 2.0]]


def keeper(target, recipe, fail_at=None):
  def keep(state):
    def write(folder):
      if state.step == fail_at:
        raise KeyError("power cut")
      about = pool.describe(recipe, state)
      pool.save(folder, result(state, recipe), {"eos_token_id": 1}, '{"added_tokens": []}', about)

    along.keep(target, state.step, write)

  return keep


@pytest.mark.parametrize("longest", [20, further(200)])
@pytest.mark.parametrize("rank", [0, 2])
def test_checkpoints_along_a_run_are_those_of_a_whole_run(layers, tmp_path, longest, rank):
  """Stopped after one, killed before the next: the same folders, and the same end."""
  data, recipe = make_corpus(longest), Recipe(**SMALL | {"steps": 60, "lora_rank": rank})

  def go(name, fail_at=None, **options):
    with states(tmp_path / name) as folder:
      keep = keeper(tmp_path / name, recipe, fail_at)
      return continued(linear_apply, layers, data, recipe, folder, keep_every=25, keep=keep, **options)

  whole, seen = go("whole"), []
  with pytest.raises(Stopped):
    go("cut", progress=lambda state: seen.append(state.step), stop=lambda: seen[-1] > 25)
  assert [path.name for path in (tmp_path / "cut").iterdir()] == ["step-25"]
  with pytest.raises(KeyError):
    go("cut", fail_at=50)
  with pytest.raises(FileExistsError):
    refuse_written(tmp_path / "cut")
  refuse_written(tmp_path / "cut", going_on=True)
  assert not (tmp_path / "cut" / "step-50").exists()
  assert equal(whole, go("cut"))
  for name in ("step-25", "step-50"):
    one, two = (tmp_path / run / name / "model.safetensors" for run in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes()
    about = json.loads((two.parent / "training.json").read_text())
    assert about["steps"] == int(name[5:]) and about["curve"][-1][0] == about["steps"]
  assert not (tmp_path / "whole" / "step-60").exists()


def test_a_run_is_not_continued_with_checkpoints_that_it_did_not_keep(layers, tmp_path):
  data, recipe, seen = make_corpus(20), Recipe(**SMALL | {"steps": 60}), []
  target = tmp_path / "run"

  def go(keep_every, **options):
    def write(state, folder):
      folder.mkdir()
      (folder / "training.json").write_text("{}")

    train_into(target, write, linear_apply, layers, data, recipe, keep_every=keep_every, **options)

  with pytest.raises(Stopped):
    go(0, progress=lambda state: seen.append(state.step), stop=lambda: seen[-1] > 25)
  with pytest.raises(ValueError, match=r"keeps a model every 0 steps, not 20 .*repeat its command"):
    go(20)
  go(0)
  assert target.is_dir() and not (tmp_path / ".run.training").exists()


def test_the_last_checkpoint_joins_those_along_the_run(tmp_path, monkeypatch):
  """Killed at any rename, the folder is no finished run, and the same call ends it."""
  target = tmp_path / "run"
  hidden = tmp_path / ".run.training"
  (target / "step-5").mkdir(parents=True)
  (hidden / "step-000000005").mkdir(parents=True)
  weights = {"w": np.arange(3.0)}

  def write(folder):
    pool.save(folder, weights, {"eos_token_id": 1}, '{"added_tokens": []}', {"tokens": 1})

  rename, left = Path.rename, [0]

  def cut(path, other):
    if path.parent.name == along.LAST:
      left[0] -= 1
      if left[0] < 0:
        raise KeyError("power cut")
    return rename(path, other)

  with monkeypatch.context() as patch:
    patch.setattr(Path, "rename", cut)
    for count in range(6):
      left[0] = count
      with pytest.raises(KeyError):
        along.finish(target, write)
      assert not (target / "training.json").exists()
      refuse_written(target, going_on=True)
  along.finish(target, write)
  assert {path.name for path in target.iterdir()} == {
    "step-5", "training.json", "model.safetensors", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json",
  }  # fmt: skip
  np.testing.assert_array_equal(checkpoints.open(target).read("w"), weights["w"])
  for going_on in (False, True):
    with pytest.raises(FileExistsError, match="is not empty"):
      refuse_written(target, going_on)
  assert not hidden.exists()  # finished


@pytest.mark.parametrize("there", ["notes.txt", "step-5x", ".step-5.partial-x"])
def test_a_folder_with_something_else_is_refused(tmp_path, there):
  (tmp_path / "run" / there).mkdir(parents=True)
  (tmp_path / ".run.training" / "step-000000005").mkdir(parents=True)
  with pytest.raises(FileExistsError, match="is not empty"):
    refuse_written(tmp_path / "run", going_on=True)


@pytest.mark.thorough
def test_the_job_writes_checkpoints_along_the_run_and_adapters(tmp_path):
  first, task = pools.make_pool(tmp_path / "pool", 1)[0], pools.make_tasks(tmp_path / "tasks")[0]
  words = [
    f"--tasks={task}", f"--init={first}", "--config.steps=50", "--config.batch_size=4", "--config.warmup=2",
    "--config.keep_every=20", "--config.lora_rank=2", "--config.decay=linear", "--config.decay_steps=10",
    "--config.learning_rate=0.01", "--config.accumulate=2",
  ]  # fmt: skip
  for name, more in (("merged", []), ("adapter", ["--save_adapter"])):
    code, out, errors = launch("train", *words, *more, f"--output_dir={tmp_path / name}")
    assert code == 0 and "step 20: loss " in out and "step 50: loss " in out, errors
  assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
    "step-20", "step-40", "adapter_config.json", "adapter_model.safetensors", "training.json",
  }  # fmt: skip
  assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged", "pool", "tasks"]
  base = checkpoints.open(first)
  for name in ("step-20", "step-40", "."):
    merged = checkpoints.open(tmp_path / "merged" / name).load()
    adapted = checkpoints.with_adapter(base, tmp_path / "adapter" / name).load()
    assert merged.keys() == adapted.keys()
    for key, value in merged.items():
      np.testing.assert_allclose(value, adapted[key], rtol=1e-6, atol=1e-6)
  about = json.loads((tmp_path / "merged" / "training.json").read_text())
  assert about["curve"][-1][0] == about["steps"] == 50 and about["recipe"]["lora_rank"] == 2


def test_a_file_of_training_numbers_needs_no_model_and_may_hold_a_mapping(tmp_path):
  """Where --init brings the model."""
  first, task = pools.make_pool(tmp_path / "pool", 1)[0], pools.make_tasks(tmp_path / "tasks")[0]
  (tmp_path / "own.py").write_text(
    "from ml_collections import config_dict\n"
    "def get_config():\n"
    "  recipe = {'mixture': {'copy': 2.0}, 'steps': 2, 'learning_rate': 1e-3, 'warmup': 1}\n"
    "  return config_dict.ConfigDict(recipe)\n"
  )
  words = [f"--config={tmp_path / 'own.py'}", f"--tasks={task}", f"--output_dir={tmp_path / 'out'}"]
  code, _, errors = launch("train", *words)
  assert code == 1 and "config.model is missing" in errors
  code, _, errors = launch("train", *words, f"--init={first}")
  assert code == 0, errors
  assert json.loads((tmp_path / "out" / "training.json").read_text())["recipe"]["mixture"] == {"copy": 2.0}
