"""What is special about rules on the sphere and rules for two models: golden values, limits, accuracy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merge_jax as mj
from merge_jax.operators.contrib import trajectory
from merge_jax.operators.contrib.arcee_fusion import arcee_fusion
from merge_jax.operators.contrib.consensus import consensus
from merge_jax.operators.contrib.karcher import karcher
from merge_jax.operators.contrib.model_stock import model_stock
from merge_jax.operators.contrib.multislerp import multislerp
from merge_jax.operators.contrib.nearswap import nearswap
from merge_jax.operators.contrib.nuslerp import nuslerp
from merge_jax.operators.contrib.passthrough import passthrough
from merge_jax.operators.contrib.pcb import pcb
from merge_jax.operators.contrib.ram import ram, ram_plus
from merge_jax.operators.contrib.widen import widen
from tests.cases.arcee_fusion import np_arcee_fusion
from tests.cases.karcher import np_mean


def numbers(text):
  return {"w": np.array([float(x) for x in text.split()], np.float32).reshape(2, 4)}


GOLDEN_BASE = numbers("1 -2 .5 0 3 -1 .25 -.5")
GOLDEN = [
  {"w": GOLDEN_BASE["w"] + numbers(text)["w"]}
  for text in (".4 -.3 .1 0 -.8 .2 .05 .6", ".2 .5 .3 -.1 -.6 -.4 .05 .7", "-.9 .1 .2 .3 -.7 0 -.05 .5")
]
TWO = [GOLDEN[0], GOLDEN[2]]


@pytest.mark.parametrize(
  ("operator", "experts", "weights", "want"),
  [
    (nuslerp(), TWO, (0.5, 0.3), ".927901 -2.190566 .649879 .115138 2.280546 -.892092 .267371 .063537"),
    (
      nuslerp(task_vectors=True), TWO, (0.5, 0.3),
      ".869534 -2.174362 .668584 .142024 2.077402 -.852198 .26328 .180113",
    ),
    (
      nuslerp(by="row"), TWO, (0.5, 0.3),
      ".937801 -2.216672 .657849 .116839 2.239556 -.875816 .262733 .06255",
    ),
    (
      multislerp(), GOLDEN, (0.5, 0.3, 0.4),
      ".910719 -2.00875 .702237 .08389 2.342305 -1.045242 .271085 .091469",
    ),
    (
      multislerp(task_vectors=True), GOLDEN, (0.5, 0.3, 0.4),
      ".935767 -1.967165 .729189 .08458 2.092721 -1.017327 .274269 .2508",
    ),
    (karcher(), GOLDEN, None, ".894555 -1.942602 .718878 .075509 2.359088 -1.095102 .271137 .099809"),
    (model_stock(), GOLDEN, None, ".92921 -1.92921 .641579 .047193 2.504472 -1.047193 .261798 -.075262"),
    (
      model_stock(by="row", clamp=False, floor=1e-6), GOLDEN, None,
      "1.33323 -2.33323 -.16646 -.222153 2.328569 -1.063946 .265986 .075512",
    ),
    (nearswap(0.1), GOLDEN[:1], None, "1.1 -2.1 .6 0 2.9 -.9 .3 -.4"),
    (ram(), GOLDEN, None, ".9 -1.9 .7 .1 2.3 -1.1 .266667 .1"),
    (ram_plus(scope="tensor"), GOLDEN, None, ".9 -1.9 .7 .1 2.3 -1.1 .266667 .1"),
    (arcee_fusion(), GOLDEN[:1], None, "1 -2 .5 0 2.2 -1 .25 .1"),
  ],
)  # fmt: skip
def test_golden_values_of_the_peer(operator, experts, weights, want):
  kwargs = {"base": GOLDEN_BASE} if operator.needs_base else {}
  merged = mj.merge(operator, experts, weights, **kwargs)["w"]
  np.testing.assert_allclose(merged, numbers(want)["w"], rtol=2e-6, atol=2e-6)


def test_lerp_above_is_a_cosine():
  weights, mean = [0.5, 0.3], (0.5 * TWO[0]["w"] + 0.3 * TWO[1]["w"]) / 0.8
  cosine = np.sum(TWO[0]["w"] * TWO[1]["w"]) / np.linalg.norm(TWO[0]["w"]) / np.linalg.norm(TWO[1]["w"])
  np.testing.assert_allclose(mj.merge(nuslerp(lerp_above=cosine - 1e-3), TWO, weights)["w"], mean, rtol=1e-6)
  curved = mj.merge(nuslerp(), TWO, weights)["w"]
  np.testing.assert_array_equal(mj.merge(nuslerp(lerp_above=cosine + 1e-3), TWO, weights)["w"], curved)
  half = mj.merge(nuslerp(), TWO, [0.5, 0.5])["w"]
  np.testing.assert_array_equal(mj.merge(nuslerp(), TWO, [1.0, -1.0])["w"], half)


ANGLES = (1.0, 1e-2, 1e-3, 1e-5, 1e-7)


@pytest.mark.parametrize("operator", [karcher(), multislerp()])
def test_near_parallel_models_against_long_double(operator):
  """To a part in a million of the norm at any angle; and what curvature adds to the chord is right, too."""
  generator, weights = np.random.default_rng(0), np.array([0.5, 0.2, 0.3], np.float32)
  start = generator.normal(size=300)
  for angle in ANGLES:
    xs = [{"w": (start + angle * generator.normal(size=300)).astype(np.float32)} for _ in range(3)]
    exact = [x["w"].astype(np.longdouble) for x in xs]
    wide = weights.astype(np.longdouble)
    if isinstance(operator, type(karcher())):
      want = np_mean(exact, wide)
    else:
      norms = [np.sqrt(np.sum(x * x)) for x in exact]
      mean = sum(w * x / n for w, x, n in zip(wide, exact, norms, strict=True))
      want = mean / np.sqrt(np.sum(mean**2)) * sum(w * n for w, n in zip(wide, norms, strict=True))
    merged = np.asarray(mj.merge(operator, xs, weights)["w"])
    assert np.abs(merged - want).max() <= 4e-7 * np.abs(want).max(), angle


@pytest.mark.parametrize("power", [-100, 60])
@pytest.mark.parametrize(
  "operator", [karcher(), multislerp(), nuslerp(by="row"), model_stock(), model_stock(by="row"), widen()]
)
def test_scale_does_not_matter(operator, power):
  experts = GOLDEN[: operator.models or 3]

  def merge(power):
    trees = [{"w": np.ldexp(tree["w"], power)} for tree in (*experts, GOLDEN_BASE)]
    return mj.merge(operator, trees[:-1], **({"base": trees[-1]} if operator.needs_base else {}))["w"]

  np.testing.assert_allclose(np.ldexp(merge(power), -power), merge(0), rtol=1e-6)


A, ZERO = GOLDEN[0]["w"], np.zeros((2, 4), np.float32)
TENTHS = np.full(768, 0.1, np.float32)
ROLLED = np.stack([np.roll(np.array([0.5, -0.5, -0.5, -0.5], np.float32), i) for i in range(24)])


@pytest.mark.parametrize(
  ("operator", "experts", "base", "want"),
  [
    (karcher(), [A, -A], None, A),  # the first direction
    (karcher(), [A, A * 3], None, A * 2),
    (karcher(), [ZERO, A], None, A / 2),  # half the norm
    (karcher(), [ZERO, ZERO], None, ZERO),
    (multislerp(), [A, -A], None, ZERO),  # the plain sum
    (multislerp(), [ZERO, A], None, A / 2),
    (multislerp(task_vectors=True), [A, ZERO], ZERO, A / 2),
    (multislerp(task_vectors=True), [A, A], A, A),
    (nuslerp(), [A, -A], None, ZERO),
    (nuslerp(by="row"), [ZERO, A], None, A * np.sqrt(0.5)),  # orthogonal to everything
    (nuslerp(task_vectors=True), [A, A], A, A),
    (model_stock(), [A, A], ZERO, A),  # one direction: the mean
    (model_stock(), [A, -A], ZERO, ZERO),
    (model_stock(), [A, ZERO], ZERO, ZERO),
    (model_stock(clamp=False), [A, -A * 0.5], ZERO, ZERO),  # 1 + (K - 1) c = 0
    (nearswap(0.0), [A], ZERO, ZERO),
    (nearswap(1e3), [A], ZERO, A),
    (ram(), [A, ZERO], ZERO, A),
    (ram_plus(), [A], ZERO, A),
    (consensus(k=0), [A, A * 2], ZERO, A * 3),
    (consensus(k=3), [A, A * 2], ZERO, ZERO),
    (consensus(k=1), [A], ZERO, A),
    (pcb(), [A, -A], ZERO, ZERO),  # nothing is left to compete for
    (pcb(1.0, q=0.0), [A, A], ZERO, 1.2 * A),
    (pcb(0.25, q=0.0), [A], ZERO, np.where(np.abs(A) > 2.2, 1.2 * A, 0.0)),
    (pcb(0.0), [A, A], A * 2, A * 2),
    (widen(), [A], ZERO, A),
    (arcee_fusion(), [A[:, :1]], ZERO[:, :1], A[:, :1]),  # rows of one element
    (arcee_fusion(), [A.reshape(-1, 1)], 0.3 * A.reshape(-1, 1) + 0.1, A.reshape(-1, 1)),
    (arcee_fusion(), [ROLLED], 0.0 * ROLLED, ROLLED),  # rows that are permutations of one another
    (mj.slerp(0.3, lerp_above=1.0), [A, A], None, A),
    (mj.slerp(0.3, lerp_above=1.0), [A, -2.0 * A], None, 0.1 * A),
    (widen(), [TENTHS, 2 * TENTHS], 0 * TENTHS, 1.5249792 * TENTHS),  # nothing is above the mean
    (arcee_fusion(), [np.rint(A) + 3.0], np.rint(A), np.rint(A) + 3.0),  # the same softmax
  ],
)
def test_limits(operator, experts, base, want):
  kwargs = {} if base is None else {"base": {"w": base}}
  merged = mj.merge(operator, [{"w": x} for x in experts], **kwargs)["w"]
  np.testing.assert_allclose(merged, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operator", [passthrough(), karcher(), multislerp()])
def test_one_model_is_itself_to_the_byte(operator):
  model = {"w": A, "norm": np.array([np.nan, 1.0], np.float32) if operator.weightless else A[0]}
  merged = mj.merge(operator, [model])
  for name, value in model.items():
    assert np.asarray(merged[name]).tobytes() == value.tobytes()


@pytest.mark.parametrize("weights", [(0.3, 0.3), (0.5, 0.7)])
def test_karchers_slope_is_that_of_its_mean(weights):
  """Of two models the mean is on the arc between them; with equal weights it is where the steps start."""
  first, second, probe = np.random.default_rng(0).normal(size=(3, 30))

  def mean(w):
    t, sizes = w[1] / w.sum(), [np.linalg.norm(x) for x in (first, second)]
    a, b = first / sizes[0], second / sizes[1]
    angle = np.arccos(a @ b)
    arc = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return arc @ probe * (w @ sizes) / w.sum()

  def merged(w):
    models = [{"w": jnp.asarray(x, jnp.float32)} for x in (first, second)]
    return jnp.asarray(probe, jnp.float32) @ mj.merge(karcher(), models, w)["w"]

  w, steps = np.array(weights), 1e-6 * np.eye(2)
  expected = [(mean(w + step) - mean(w - step)) / 2e-6 for step in steps]
  np.testing.assert_allclose(jax.grad(merged)(jnp.asarray(w, jnp.float32)), expected, rtol=1e-3, atol=1e-3)


def test_weights_that_cancel_are_not_divided_by():
  """mergekit TIES: a sum of agreeing weights that is rounding counts as 0, in any order of the models."""
  rule = mj.ties(1.0, scope="tensor", election="weighted", divisor="weights", zero_sign="positive")
  models, weights = np.array([[1.0], [-1.0], [-1.0]], np.float32), np.array([0.3, -0.1, -0.2], np.float32)
  for order in itertools.permutations(range(3)):
    experts = [{"w": models[i]} for i in order]
    merged = mj.merge(rule, experts, weights[list(order)], base={"w": np.zeros(1, np.float32)})["w"]
    np.testing.assert_allclose(merged, [0.6], rtol=1e-6)


@pytest.mark.parametrize("operator", [karcher(), multislerp()])
@pytest.mark.parametrize("pair", [(A, A), (A, -A), (A, ZERO), (ZERO, ZERO)])
def test_gradients_are_finite(operator, pair):
  def total(first, second, weights):
    return jnp.sum(mj.merge(operator, [{"w": first}, {"w": second}], weights)["w"])

  gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*pair, jnp.array([0.5, 0.5]))
  assert all(np.all(np.isfinite(x)) for x in gradients)


def test_fusion_of_models_that_hardly_differ():
  """The plain formula loses the divergence in float32; the choice is that of long double."""
  generator = np.random.default_rng(1)
  base = {"w": (0.02 * generator.normal(size=(64, 100))).astype(np.float32)}
  other = {"w": (base["w"] + 1e-4 * generator.standard_t(3, size=(64, 100))).astype(np.float32)}
  merged = mj.merge(arcee_fusion(), [other], base=base)["w"]
  want = np_arcee_fusion([other], base, None)["w"]
  different = np.asarray(merged) != want.astype(np.float32)
  assert different.sum() <= 1 and 50 < np.sum(np.asarray(merged) != base["w"]) < 1000


def test_widen_takes_important_columns_whole():
  base, moved = {"w": np.ones((3, 4), np.float32)}, {"w": np.ones((3, 4), np.float32)}
  moved["w"][:, 2] = (5.0, 1.0, 1.0)
  merged = mj.merge(widen(), [moved, base], base=base)["w"]
  np.testing.assert_allclose(merged, moved["w"])


def test_widen_ranks_zero_columns_by_their_cosines_and_position():
  base, model = {"w": np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)}, {}
  model["w"] = np.where(np.arange(40) < 30, 0.0, base["w"]).astype(np.float32)
  model["w"][:, 30] = base["w"][::-1, 30]  # some cosine below 1
  turned = np.where(np.arange(40) < 30, 1.0, 0.0)
  turned[30] = 1 - base["w"][:, 30] @ model["w"][:, 30] / np.sum(base["w"][:, 30] ** 2)
  sizes = np.abs(np.linalg.norm(model["w"], axis=0) - np.linalg.norm(base["w"], axis=0))
  sizes[30] = 0.0
  ranks = [np.argsort(np.argsort(x, kind="stable"), kind="stable") / 40 for x in (sizes, turned)]
  shares = sum(np.where(x > x.mean(), 0.4, 1.0) for x in ranks) / 2
  merged = mj.merge(widen(score=0.4), [model], base=base)["w"]
  np.testing.assert_allclose(merged, base["w"] + shares * (model["w"] - base["w"]), rtol=1e-5, atol=1e-6)


STEPS = [0, 100, 250, 300, 500, 600]


@pytest.mark.parametrize("window", [None, 1, 2, 5])
@pytest.mark.parametrize("name", trajectory.SCHEDULES)
def test_schedules_are_weights(name, window):
  weights = trajectory.SCHEDULES[name](STEPS, window=window)
  count = window or len(STEPS)
  assert weights.shape == (len(STEPS),) and abs(weights.sum() - 1) < 1e-12 and np.all(weights >= 0)
  assert not weights[: len(STEPS) - count].any()
  alone = trajectory.SCHEDULES[name](STEPS[-count:])
  np.testing.assert_allclose(weights[len(STEPS) - count :], alone)


@pytest.mark.parametrize("name", trajectory.DECAYS)
def test_a_merge_is_a_decay(name):
  """`Σ cⱼ θⱼ` is where the run would be had its updates been multiplied by the schedule."""
  generator, count = np.random.default_rng(2), 8
  updates = generator.normal(size=(count - 1, 5))
  run = np.concatenate([np.zeros((1, 5)), np.cumsum(updates, 0)])
  factors = [trajectory.DECAYS[name](j / count) for j in range(1, count)]
  weights = trajectory.from_decay(name, np.arange(count) * 1000)
  np.testing.assert_allclose(weights @ run, factors @ updates, atol=1e-12)
  np.testing.assert_allclose(trajectory.from_decay(factors, np.arange(count)), weights, atol=1e-12)


def test_schedules_follow_their_definitions():
  steps = np.arange(5)
  np.testing.assert_allclose(trajectory.from_decay("linear", steps), trajectory.uniform(steps))
  np.testing.assert_allclose(trajectory.from_decay(lambda x: 3.0, steps), [0, 0, 0, 0, 1])
  np.testing.assert_allclose(trajectory.linear(steps), np.arange(1, 6) / 15)
  mean, values = 2.0, [2.0, 3.0, 5.0, 7.0, 11.0]
  for value in values[1:]:
    mean = 0.7 * mean + 0.3 * value
  np.testing.assert_allclose(trajectory.ema(steps, decay=0.7) @ values, mean)
  np.testing.assert_array_equal(trajectory.ema(steps, decay=0.0), [0, 0, 0, 0, 1])
  # A wide gap after the first checkpoint takes a large share of the decay.
  assert trajectory.from_decay("linear", [0, 9, 10])[0] > 0.5


def test_candidates_are_every_schedule_once_in_the_order_of_the_models():
  steps = [30, 10, 20, 40]
  found = trajectory.candidates(steps)
  np.testing.assert_allclose(found.sum(1), 1.0)
  assert len({tuple(row.round(9)) for row in found}) == len(found) == 9
  order = np.argsort(steps)
  np.testing.assert_allclose(found[:, order], trajectory.candidates(sorted(steps)))
  np.testing.assert_allclose(found[0], 0.25)
  assert len(trajectory.candidates([5])) == 1


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: trajectory.by_step("linaer", [1, 2]), "did you mean 'linear'"),
    (lambda: trajectory.by_step("linear", [1, 2], decay=0.5), "schedule linear: .*decay"),
    (lambda: trajectory.candidates([1, 1]), "increasing"),
    (lambda: trajectory.uniform([]), "expected those of one or more checkpoints, increasing"),
    (lambda: trajectory.uniform([1, 1]), "increasing"),
    (lambda: trajectory.ema([1, 2], window=3), "window is 3; expected a whole number from 1 to 2"),
    (lambda: trajectory.ema([1, 2], window=0), "window is 0"),
    (lambda: trajectory.ema([1, 2], decay=1.5), "decay is 1.5; expected a number between 0 and 1"),
    (lambda: trajectory.from_decay("minus_sqr", [1, 2]), "did you mean 'minus_sqrt'"),
    (lambda: trajectory.from_decay([0.5], [1, 2, 3]), "one factor for each but the first, 2"),
    (lambda: trajectory.from_decay([0.5, 0.6], [1, 2, 3]), "never rise"),
    (lambda: trajectory.from_decay([1.5, 0.6], [1, 2, 3]), "never rise"),
    (lambda: trajectory.from_decay([0.5, -0.1], [1, 2, 3]), "never rise"),
    (lambda: trajectory.from_decay([0.5, np.nan], [1, 2, 3]), "never rise"),
    (lambda: trajectory.from_decay(lambda x: x, [1, 2]), "0.0 at 0; expected a rate above 0"),
    (lambda: passthrough(np.nan), "scale is nan"),
    (lambda: mj.merge(passthrough(), GOLDEN), "merges 1 models, got 3"),
    (lambda: nuslerp(by="col"), "unknown by 'col'; did you mean 'column'"),
    (lambda: nuslerp(lerp_above=2.0), "lerp_above is 2.0; expected a number between 0 and 1"),
    (lambda: mj.merge(nuslerp(), GOLDEN), "merges 2 models, got 3"),
    (lambda: mj.merge(karcher(), TWO, [1.0, -1.0]), "sum to 0"),
    (lambda: karcher(max_iter=1.5), "max_iter is 1.5; expected a whole number"),
    (lambda: mj.merge(multislerp(task_vectors=True), TWO), "pass base="),
    (lambda: mj.merge(model_stock(), GOLDEN, [1.0] * 3, base=GOLDEN_BASE), "takes no weights"),
    (lambda: mj.merge(model_stock(), GOLDEN[:1], base=GOLDEN_BASE), "got 1; pass two or more"),
    (lambda: nearswap(-1.0), "t is -1.0"),
    (lambda: ram(epsilon=-1.0), "epsilon is -1.0"),
    (lambda: ram_plus(scope="layer"), "unknown scope 'layer'; Known: model, tensor"),
    (lambda: pcb(1.5), "density is 1.5"),
    (lambda: pcb(q=0.6), "q is 0.6; expected a number between 0 and 0.5"),
    (lambda: consensus(k=np.nan), "k is nan"),
    (lambda: widen(score=-1.0), "score is -1.0"),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
