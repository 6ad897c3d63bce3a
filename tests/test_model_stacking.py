"""Stacked layers in one scan compute what the layers one by one do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import models, sharding
from merge_jax.operators import naming
from tests.further import beyond
from tests.golden import cases

LAYERS = 8
ALWAYS = ("llama3", "gemma3", "qwen3_moe")
EQUAL = beyond(ALWAYS, (name for name, case in cases.CASES.items() if not case.get("mlp_only_layers")))


def deep(name, **change):
  model = models.build(cases.config_of(name) | {"num_hidden_layers": LAYERS} | change)
  params = cases.parameters({n: s.shape for n, s in model.specs.items()})
  return model, {n: 0.3 * x for n, x in params.items()}  # rounding errors must not grow with the depth


@pytest.mark.parametrize("name", EQUAL)
def test_stacked_layers_compute_the_same(name):
  model, params = deep(name)
  tokens, positions = jnp.asarray(cases.TOKENS), jnp.array([[3, 71, 0], [7, 8, 9]])
  apply = jax.jit(model.apply)
  stacked = models.stack(params, model.stacks)
  assert len(stacked) < len(params) / 4
  assert {n: x.shape for n, x in stacked.items()} == {
    n: s.shape for n, s in models.stack_specs(model.specs, model.stacks).items()
  }
  expected = apply(params, tokens, positions)
  np.testing.assert_allclose(apply(stacked, tokens, positions), expected, rtol=0, atol=1e-5)


def test_gradients_of_stacks_are_stacks_of_gradients():
  model, params = deep("qwen2_windows")
  tokens = jnp.asarray(cases.TOKENS[:, :12])

  def gradient(params, remat):
    return jax.jit(jax.grad(lambda p: jnp.mean(model.apply(p, tokens, remat=remat) ** 2)))(params)

  expected = gradient({n: jnp.asarray(x) for n, x in params.items()}, False)
  for remat in (False, True):
    found = models.unstack(gradient(models.stack(params, model.stacks), remat), model.stacks)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      scale = float(jnp.abs(value).max())
      np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4 * scale, err_msg=name)


def test_many_candidates_run_side_by_side():
  model, params = deep("qwen3")
  tokens, stacked = jnp.asarray(cases.TOKENS[:, :12]), models.stack(params, model.stacks)
  scales = jnp.array([1.0, 0.9])
  many = jax.jit(jax.vmap(lambda s: model.apply({n: s * x for n, x in stacked.items()}, tokens)))(scales)
  one = model.apply({n: 0.9 * x for n, x in stacked.items()}, tokens)
  np.testing.assert_allclose(many[1], one, rtol=0, atol=1e-5)


def test_bfloat16_scans():
  model, params = deep("llama3")
  tokens, stacked = jnp.asarray(cases.TOKENS[:, :20]), models.stack(params, model.stacks)
  flat, low = (
    jax.jit(model.apply, static_argnums=3)(p, tokens, None, jnp.bfloat16) for p in (params, stacked)
  )
  assert low.dtype == jnp.float32
  assert float(jnp.abs(low - flat).mean()) < 0.01 * float(jnp.abs(flat).max())


def test_stacks_are_what_operators_take_them_for():
  model, params = deep("qwen2", tie_word_embeddings=False)
  stacked = models.stack(params, model.stacks)
  for name, value in stacked.items():
    _, slices = naming.axes_of(name, value.shape, model.axes)
    assert slices == model.stacks.get(name, (name,))
  for name, value in params.items():  # names of single layers are no stacks
    assert naming.axes_of(name, value.shape, model.axes) == (naming.Axes(), (name,))
  pool = [params, {n: 2 * x for n, x in params.items()}]
  merged = mj.merge(mj.linear(), pool, [0.25, 0.75])
  at_once = mj.merge(
    mj.linear(), [models.stack(p, model.stacks) for p in pool], [0.25, 0.75], axes=model.axes
  )
  for name, value in models.unstack(at_once, model.stacks).items():
    np.testing.assert_array_equal(value, merged[name])


def test_stacks_of_a_mesh():
  """Parameters are cut over fsdp, rows divided over it."""
  model, params = deep("llama3")
  mesh = sharding.make_mesh("data:2,fsdp:2,tensor:2")
  specs = models.stack_specs(model.specs, model.stacks)
  stacked = models.stack(params, model.stacks)
  tokens = jnp.asarray(np.tile(cases.TOKENS[:, :12], (2, 1)))
  expected = jax.jit(model.apply)(stacked, tokens)
  placed = jax.device_put(stacked, sharding.shardings(specs, mesh, axes=model.axes))
  with jax.set_mesh(mesh):
    found = jax.jit(model.apply)(placed, tokens)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_few_layers_are_not_stacked():
  assert models.build(cases.config_of("llama2") | {"num_hidden_layers": 7}).stacks == {}


def test_names_and_shapes_of_stacks_are_checked():
  model, params = deep("llama2")
  stacked = models.stack(params, model.stacks)
  tokens, name = jnp.zeros((1, 2), jnp.int32), "model.layers.mlp.up_proj.weight"
  with pytest.raises(ValueError, match=rf"{name}' has shape \(7, .*; its config says \(8, "):
    model.apply(stacked | {name: stacked[name][:7]}, tokens)
  with pytest.raises(ValueError, match=r"layers.0.input_layernorm.weight' is missing"):
    model.inputs(stacked, tokens)
  with pytest.raises(ValueError, match=r"layers.0.mlp.up_proj.weight' has no place"):
    model.apply(stacked | {model.stacks[name][0]: params[model.stacks[name][0]]}, tokens)


@pytest.mark.parametrize("layers", [range(1, 9), [*range(7), 8], range(7)])
def test_layers_that_are_few_or_not_all_there_are_not_stacked(layers):
  spec = jax.ShapeDtypeStruct((2,), "float32")
  assert models.stacking.find({f"model.layers.{i}.w": spec for i in layers}) == {}
