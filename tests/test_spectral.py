"""What the spectral and data-weighted rules promise beyond the laws of all operators."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merge_jax as mj
from merge_jax.operators.contrib import spectral
from merge_jax.operators.contrib.fisher import fisher
from merge_jax.operators.contrib.iso_c import iso_c
from merge_jax.operators.contrib.iso_cts import _own, iso_cts
from merge_jax.operators.contrib.knots import knots
from merge_jax.operators.contrib.regmean import regmean
from merge_jax.operators.contrib.tsv import tsv


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


BASE = {"w": draw(0, 12, 9)}


def low_rank(seed, rank=2):
  return {"w": BASE["w"] + draw(seed, 12, rank) @ draw(seed + 1, rank, 9)}


def delta(operator, experts, weights=None, **kwargs):
  return np.asarray(mj.merge(operator, experts, weights, base=BASE, **kwargs)["w"], np.float64) - BASE["w"]


def exact(expert):
  return expert["w"].astype(np.float64) - BASE["w"]


@pytest.mark.parametrize(("shape", "rank"), [((5, 5), 5), ((7, 4), 4), ((4, 7), 4), ((6, 5), 2)])
def test_the_polar_factor_has_its_own_derivative(shape, rank):
  """Against differences of an SVD in float64, equal and zero singular values included."""
  generator = np.random.default_rng(1)
  left, right = (np.linalg.qr(generator.normal(size=(size, rank)))[0] for size in shape)
  values = np.array([2.0, 2.0, 1.0, 0.5, 0.1])[:rank]
  x = (left * values) @ right.T
  turn, other = generator.normal(size=(shape[0],) * 2), generator.normal(size=(shape[1],) * 2)
  dx = turn @ x + x @ other  # keeps the rank
  with jax.enable_x64(True):
    polar = jax.jit(lambda x: spectral.polar(x)[0])
    value, slope = jax.jvp(polar, (jnp.asarray(x),), (jnp.asarray(dx),))
    back = jax.grad(lambda x: jnp.sum(polar(x) * dx))(jnp.asarray(x))

    def at(step):
      moved = (np.eye(shape[0]) + step * turn) @ x @ (np.eye(shape[1]) + step * other)
      u, _, v = np.linalg.svd(moved, full_matrices=False)
      return u[:, :rank] @ v[:rank]

    np.testing.assert_allclose(value, at(0.0), atol=1e-12)
    np.testing.assert_allclose(slope, (at(1e-5) - at(-1e-5)) / 2e-5, atol=1e-6)
    np.testing.assert_allclose(np.sum(back * dx), np.sum(slope * dx), rtol=1e-8)


RULES = {"tsv": mj.tsv(), "iso_cts": mj.iso_cts(common=0.5), "knots": mj.knots(mj.task_arithmetic())}


@pytest.mark.parametrize("rank", [0, 1, 9])
@pytest.mark.parametrize("name", RULES)
def test_gradients_of_frozen_and_low_rank_tensors(name, rank):
  """In the weights and in models that keep their rank, against finite differences."""
  with jax.enable_x64(True):
    base = jnp.asarray(BASE["w"], float)
    generator = np.random.default_rng(3)
    factors = [(generator.normal(size=(12, rank)), generator.normal(size=(rank, 9))) for _ in range(2)]
    moves = [generator.normal(size=x.shape) for pair in factors for x in pair]

    @jax.jit
    def total(weights, factors):
      experts = [{"w": base + a @ b} for a, b in factors]
      return jnp.sum(jnp.sin(mj.merge(RULES[name], experts, weights, base={"w": base})["w"]))

    def at(step):
      parts = iter(x + step * move for x, move in zip(itertools.chain(*factors), moves, strict=True))
      return total(jnp.array([0.5 + step, 0.8]), list(zip(parts, parts, strict=True)))

    slopes = jax.grad(total, (0, 1))(jnp.array([0.5, 0.8]), factors)
    along = slopes[0][0] + sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(slopes[1]), moves, strict=True))
    np.testing.assert_allclose(along, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (12, 30)])
def test_gradients_of_a_model_that_is_the_base_are_finite(name, shape):
  """Its directions are noise; what the others have may change."""
  with jax.enable_x64(True):
    generator = np.random.default_rng(3)
    base, move, step = (jnp.asarray(generator.normal(size=shape)) for _ in range(3))

    def total(one, other):
      return jnp.sum(jnp.sin(mj.merge(RULES[name], [{"w": one}, {"w": other}], base={"w": base})["w"]))

    slopes = jax.grad(total, (0, 1))(base + move, base)
    assert all(np.isfinite(slope).all() for slope in slopes)
    ends = [total(base + move + h * step, base) for h in (1e-5, -1e-5)]
    np.testing.assert_allclose(jnp.vdot(slopes[0], step), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-6)
    assert all(np.isfinite(slope).all() for slope in jax.grad(total, (0, 1))(base, base))


def test_tsv_of_one_model_and_of_equal_ones():
  expert = {"w": BASE["w"] + draw(1, 12, 9)}
  np.testing.assert_allclose(delta(tsv(), [expert]), exact(expert), atol=1e-5)
  u, s, v = np.linalg.svd(exact(expert), full_matrices=False)
  np.testing.assert_allclose(delta(tsv(), [expert] * 3), (u[:, :3] * s[:3]) @ v[:3], atol=1e-5)


def test_tsv_of_orthogonal_tasks_is_their_sum():
  experts = [{"w": BASE["w"].copy()} for _ in range(3)]
  for i, expert in enumerate(experts):
    expert["w"][4 * i : 4 * i + 2, 3 * i : 3 * i + 2] += draw(i + 1, 2, 2)
  weights = (0.5, 2.0, -1.0)
  expected = sum(w * exact(e) for w, e in zip(weights, experts, strict=True))
  np.testing.assert_allclose(delta(tsv(), experts, weights), expected, atol=1e-5)


def test_a_zero_task_vector_does_not_turn_the_others():
  expert = low_rank(1, 3)
  for other in (BASE, expert):
    expected = np.linalg.norm(exact(expert))
    found = delta(tsv(), [expert, other, BASE])
    np.testing.assert_allclose(np.linalg.norm(found), expected, rtol=1e-4)
    np.testing.assert_allclose(found, exact(expert), atol=2e-5)


@pytest.mark.parametrize("operator", [tsv(), iso_c(), iso_cts(), knots(mj.task_arithmetic())])
def test_opposite_models_give_the_base(operator):
  change = draw(1, 12, 9)
  models = [{"w": np.round(BASE["w"] * 8) / 8 + sign * np.round(change * 8) / 8} for sign in (1, -1)]
  base = {"w": np.round(BASE["w"] * 8) / 8}
  np.testing.assert_allclose(mj.merge(operator, models, base=base)["w"], base["w"], atol=1e-5)


@pytest.mark.parametrize("operator", [iso_c(), iso_cts(common=0.5)])
def test_isotropic_rules_leave_directions_of_noise_out(operator):
  experts = [low_rank(1), low_rank(3)]
  values = np.linalg.svd(delta(operator, experts), compute_uv=False)
  np.testing.assert_allclose(values[:4], values[0], rtol=1e-4)
  np.testing.assert_allclose(values[4:], 0.0, atol=1e-4 * values[0])


def test_iso_cts_with_a_common_space_alone_is_iso_c():
  experts = [{"w": BASE["w"] + draw(i, 12, 9)} for i in (1, 2)]
  np.testing.assert_allclose(delta(iso_cts(common=1.0), experts), delta(iso_c(), experts), atol=1e-5)


@pytest.mark.parametrize("size", range(2, 12))
@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("common", [0.0, 0.5, 0.8, 1.0])
def test_own_directions_fit(size, count, common):
  assert 0 <= _own(size, count, common) * count <= size


@pytest.mark.parametrize("rank", [None, 4, 100])
def test_knots_with_a_linear_rule_changes_nothing(rank):
  experts, weights = [low_rank(1), low_rank(3)], (0.3, -0.8)
  expected = sum(w * exact(e) for w, e in zip(weights, experts, strict=True))
  np.testing.assert_allclose(
    delta(knots(mj.task_arithmetic(), rank=rank), experts, weights), expected, atol=1e-5
  )


def test_the_density_of_knots_is_one_of_the_rank():
  """With k = 36 of 4 x 9 aligned elements kept nothing is trimmed; of 9 x 9 most would be 0."""
  experts = [low_rank(1, 4)]
  found = delta(knots(mj.ties(0.999, scope="tensor", zero_sign="positive"), rank=4), experts)
  np.testing.assert_allclose(found, exact(experts[0]), atol=1e-5)


def test_knots_takes_random_rules():
  rule = mj.dare_ties(0.5, zero_sign="positive")
  assert knots(rule).needs_key
  found = [delta(knots(rule), [low_rank(1), low_rank(3)], key=jax.random.key(i)) for i in (0, 0, 1)]
  np.testing.assert_array_equal(found[0], found[1])
  assert np.abs(found[0] - found[2]).max() > 0.1


@pytest.mark.parametrize("tokens", [3, 100])
@pytest.mark.parametrize("axes", [False, True], ids=["torch", "flax"])
def test_regmean_is_the_least_squares_solution_next_to_the_mean(tokens, axes):
  """Against numpy's minimum-norm solution on the inputs themselves; 2 x 3 tokens do not span 9 inputs."""
  experts = [{"w": draw(i, 4, 9)} for i in (1, 2)]
  inputs = [draw(i, tokens, 9).astype(np.float64) * np.logspace(-1, 1, 9) for i in (5, 6)]
  grams = [{"w": (x.T @ x / tokens).astype(np.float32)} for x in inputs]
  mean = (experts[0]["w"] + experts[1]["w"]).astype(np.float64) / 2
  size = np.sqrt(sum(np.diag(g["w"].astype(np.float64)) for g in grams))
  stacked = np.concatenate(inputs) / size
  targets = np.concatenate([x @ (e["w"] - mean).T for x, e in zip(inputs, experts, strict=True)])
  expected = mean + (np.linalg.lstsq(stacked, targets, 1e-6)[0] / size[:, None]).T
  if axes:
    turned = [{"w": e["w"].T} for e in experts]
    merged = mj.merge(regmean(), turned, statistics=grams, axes=((".*", mj.Axes(out=(1,))),))["w"].T
  else:
    merged = mj.merge(regmean(), experts, statistics=grams)["w"]
  np.testing.assert_allclose(merged, expected, atol=2e-4)


def test_regmean_with_inputs_that_are_independent_weighs_each_alone():
  experts = [{"w": draw(i, 4, 9)} for i in (1, 2)]
  grams = [{"w": draw(i, 9, 9) @ draw(i, 9, 9).T} for i in (3, 4)]
  shares = [np.diag(g["w"]) for g in grams]
  expected = sum(e["w"] * s for e, s in zip(experts, shares, strict=True)) / sum(shares)
  np.testing.assert_allclose(mj.merge(regmean(0.0), experts, statistics=grams)["w"], expected, atol=1e-5)


@pytest.mark.parametrize("degenerate", [np.eye(9), np.zeros((9, 9)), np.ones((9, 9))])
def test_regmean_has_finite_gradients(degenerate):
  experts = [{"w": draw(i, 4, 9)} for i in (1, 2)]
  prepared = mj.prepare(regmean(), experts, statistics=[{"w": degenerate.astype(np.float32)}] * 2)
  slope = jax.grad(lambda weights: jnp.sum(mj.combine(prepared, weights)["w"]))(jnp.array([0.3, 0.9]))
  difference = np.sum(experts[0]["w"] - experts[1]["w"], dtype=np.float64)
  expected = difference * np.array([0.9, -0.3]) / 1.2**2  # equal Gram matrices: the weighted mean
  np.testing.assert_allclose(slope, expected, rtol=1e-3)


def test_fisher_follows_the_model_that_depends_on_a_parameter():
  experts = [{"w": np.array([1.0, 1.0, 1.0], np.float32)}, {"w": np.array([3.0, 3.0, 3.0], np.float32)}]
  information = [{"w": np.array([1e-25, 0, 0], np.float32)}, {"w": np.array([0, 1e-12, 0], np.float32)}]
  for normalization in ("model", "tensor", "none"):
    operator = fisher(floor=0.0, normalization=normalization)
    merged = mj.merge(operator, experts, [0.75, 0.25], statistics=information)["w"]
    np.testing.assert_allclose(merged, [1.0, 3.0, 1.5], rtol=1e-6)
  tiny = mj.merge(fisher(floor=1e-3), experts, statistics=information)["w"]
  assert 1.0 < tiny[0] < 1.01 and 2.99 < tiny[1] < 3.0


E_, S_ = [{"w": BASE["w"]}] * 2, [{"w": np.eye(9, dtype=np.float32)}] * 2


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: tsv(np.inf), "scaling is inf"),
    (lambda: iso_cts(common=1.5), "common is 1.5; expected a plain number between 0 and 1"),
    (lambda: iso_cts(common=jnp.float32(0.5)), "common is Array.*; expected a plain number"),
    (lambda: knots(mj.linear()), "expected one of task vectors"),
    (lambda: knots("ties"), "rule is 'ties'"),
    (lambda: knots(mj.ties()), "pass scope='tensor'"),
    (lambda: knots(rank=0), "rank is 0; expected a whole number from 1 on"),
    (lambda: fisher(floor=-1.0), "floor is -1"),
    (lambda: fisher(normalization="layer"), "unknown normalization 'layer'"),
    (lambda: regmean(2.0), "off_diagonal is 2.0; expected a number between 0 and 1"),
    (lambda: mj.merge(fisher(), E_), "pass statistics="),
    (lambda: mj.merge(fisher(), E_, statistics=S_), r"shape \(12, 9\) has shape \(9, 9\)"),
    (lambda: mj.merge(fisher(), E_, statistics=[{"w": None}] * 2), "Fisher information of every tensor"),
    (lambda: mj.merge(regmean(), E_), "pass statistics="),
    (lambda: mj.merge(regmean(), E_, statistics=[{"w": BASE["w"]}] * 2), r"9 inputs are of shape \(12, 9\)"),
    (lambda: mj.merge(regmean(), E_, statistics=[{"w": None}, S_[0]]), r"missing and of shape \(9, 9\)"),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
