"""The decoder against logits of transformers: stored ones, and live where the library is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import models
from tests.golden import cases, regenerate


def case(name):
  model = models.build(cases.config_of(name))
  return model, cases.parameters({n: s.shape for n, s in model.specs.items()})


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_are_those_of_transformers(name):
  model, params = case(name)
  logits = model.apply(params, jnp.asarray(cases.TOKENS))
  golden = np.load(regenerate.PATH)[name]
  assert np.abs(golden).max() > 3
  np.testing.assert_allclose(logits[regenerate.KEPT], golden, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_transformers_live(name):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  model, params = case(name)
  logits = model.apply(params, jnp.asarray(cases.TOKENS))
  np.testing.assert_allclose(logits, regenerate.reference(name), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen3"])
def test_logits_at_positions_are_those_of_all(name):
  model, params = case(name)
  tokens, positions = jnp.asarray(cases.TOKENS[:, :20]), jnp.array([[3, 19, 0], [7, 8, 9]])
  part = jax.jit(model.apply)(params, tokens, positions)
  whole = jax.jit(model.apply)(params, tokens)
  np.testing.assert_allclose(part, jnp.take_along_axis(whole, positions[:, :, None], 1), atol=1e-5)


def test_padding_on_the_right_changes_nothing():
  model, params = case("qwen3")
  tokens = cases.TOKENS[:1, :10]
  padded = np.pad(tokens, ((0, 0), (0, 6)))
  apply = jax.jit(model.apply)
  short = apply(params, jnp.asarray(tokens))
  np.testing.assert_allclose(apply(params, jnp.asarray(padded))[:, :10], short, atol=1e-5)


def test_bfloat16_computes_close():
  model, params = case("llama3")
  tokens = jnp.asarray(cases.TOKENS[:, :20])
  apply = jax.jit(model.apply, static_argnames="dtype")
  exact = apply(params, tokens)
  low = apply(params, tokens, dtype=jnp.bfloat16)
  assert low.dtype == jnp.float32
  assert 0 < float(jnp.abs(low - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def test_gradients_reach_every_parameter():
  model, params = case("qwen2")

  def loss(params):
    return jnp.mean(model.apply(params, jnp.asarray(cases.TOKENS[:, :12])) ** 2)

  gradient = jax.jit(jax.grad(loss))({n: jnp.asarray(v) for n, v in params.items()})
  for name, value in gradient.items():
    assert float(jnp.abs(value).max()) > 0, name


def test_names_and_shapes_are_checked():
  model, params = case("llama2")
  tokens = jnp.zeros((1, 2), jnp.int32)
  with pytest.raises(ValueError, match=r"'model.norm.weight' is missing"):
    model.apply({n: v for n, v in params.items() if n != "model.norm.weight"}, tokens)
  with pytest.raises(ValueError, match="'extra' has no place"):
    model.apply(params | {"extra": np.ones(1)}, tokens)
  with pytest.raises(ValueError, match=r"shape \(3,\); its config says \(32,\)"):
    model.apply(params | {"model.norm.weight": np.ones(3)}, tokens)
  model.apply(params | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4)}, tokens)
