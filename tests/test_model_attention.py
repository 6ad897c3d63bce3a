"""Attention against its formula in float64, and where cuDNN's kernel stands in a program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import models
from merge_jax.models import attention
from tests.golden import cases

BATCH, TIME, HEADS, KV_HEADS, SIZE = 2, 11, 4, 2, 8


def reference(q, k, v, at, window, scale, cap):
  k, v = (np.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
  logits = np.einsum("bqhd,bthd->bhqt", q, k) * scale
  logits = logits if cap is None else cap * np.tanh(logits / cap)
  behind = at[:, None, :, None] - np.arange(TIME)
  seen = (behind >= 0) & (behind < (TIME if window is None else window))
  shares = np.where(seen, np.exp(logits), 0.0)
  return np.einsum("bhqt,bthd->bqhd", shares / shares.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("at", [None, [[3, 0, 10], [5, 5, 9]]])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("scale", "cap"), [(None, None), (0.5, 2.0)])
def test_attention_is_its_formula(at, window, scale, cap):
  generator = np.random.default_rng(0)
  positions = np.tile(np.arange(TIME), (BATCH, 1)) if at is None else np.array(at)
  q = generator.normal(size=(BATCH, positions.shape[1], HEADS, SIZE))
  k, v = generator.normal(size=(2, BATCH, TIME, KV_HEADS, SIZE))
  expected = reference(q, k, v, positions, window, SIZE**-0.5 if scale is None else scale, cap)
  arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
  where = None if at is None else jnp.asarray(at)
  for known in (window, None if window is None else jnp.asarray(window)):
    found = attention.attend(*arrays, where, known, scale, cap)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  low = attention.attend(*(x.astype(jnp.bfloat16) for x in arrays), where, window, scale, cap)
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(low.astype(jnp.float32), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    ({}, True),
    ({"dtype": jnp.float16}, True),
    ({"window": 16}, True),
    ({"attention": "cudnn", "backend": "cpu"}, True),
    ({"backend": "cpu"}, False),
    ({"backend": "tpu"}, False),
    ({"attention": "xla"}, False),
    ({"dtype": jnp.float32}, False),
    ({"head_dim": 256}, False),
    ({"head_dim": 36}, False),
    ({"window": jnp.asarray(16)}, False),
    ({"cap": 50.0}, False),
    ({"at": jnp.zeros((1, 1), jnp.int32)}, False),
  ],
)
def test_cudnn_computes_what_it_can(change, expected):
  asked = {"attention": "auto", "backend": "gpu", "dtype": jnp.bfloat16, "head_dim": 128}
  assert attention.fused(**asked | change) is expected


@pytest.mark.parametrize(("name", "kernels"), [("llama3", 1), ("mistral", 1), ("qwen2_windows", 0)])
def test_programs_for_cuda_hold_the_kernel(name, kernels, monkeypatch):
  """Lowered without a device: all layers but the last, whose queries are few, alone and for candidates."""
  library = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)  # it asks the device's plugin
  model = models.build(cases.config_of(name) | {"num_hidden_layers": 9}, attention="cudnn")
  specs = models.stack_specs(model.specs, model.stacks)
  many = {n: jax.ShapeDtypeStruct((3, *s.shape), s.dtype) for n, s in specs.items()}
  tokens, positions = (jax.ShapeDtypeStruct((2, n), jnp.int32) for n in (64, 5))

  def apply(params, tokens, positions):
    return model.apply(params, tokens, positions, jnp.bfloat16)

  for function, params in ((apply, specs), (jax.vmap(apply, (0, None, None)), many)):
    lowered = jax.jit(function).trace(params, tokens, positions).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("@__cudnn$fmhaSoftmax") == kernels


@pytest.mark.parametrize("time", [63, 64])
def test_gradients_of_any_length_have_the_kernel(time, monkeypatch):
  library = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)
  model = models.build(cases.config_of("llama3"), attention="cudnn")

  def loss(params, tokens):
    return jnp.sum(model.apply(params, tokens, None, jnp.bfloat16).astype(jnp.float32))

  tokens = jax.ShapeDtypeStruct((2, time), jnp.int32)
  traced = jax.jit(jax.grad(loss)).trace(model.specs, tokens)
  assert "@__cudnn$fmhaSoftmaxBackward" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
  ("dtype", "told", "expected"),
  [
    (jnp.float32, None, {"HIGHEST"}),
    (jnp.bfloat16, None, {"DEFAULT"}),
    (jnp.float32, "tensorfloat32", {"HIGH"}),
  ],
)
def test_float32_is_computed_in_float32(dtype, told, expected):
  """Not in TF32 or bfloat16, as JAX would on GPUs and TPUs; gradients neither."""
  model = models.build(cases.config_of("llama3"))

  def loss(params, tokens):
    return jnp.sum(model.apply(params, tokens, None, dtype).astype(jnp.float32))

  with jax.default_matmul_precision(told):
    lowered = jax.jit(jax.grad(loss)).lower(model.specs, jax.ShapeDtypeStruct((2, 8), jnp.int32))
  found = re.findall(r"stablehlo.dot_general.*precision = \[(\w+), (\w+)\]", lowered.as_text())
  dots = lowered.as_text().count("stablehlo.dot_general")
  kinds = {kind for pair in found for kind in pair} | ({"DEFAULT"} if len(found) < dots else set())
  assert dots > 10 and kinds == expected


def test_inputs_and_generated_texts_are_computed_in_float32():
  model, rows = models.build(cases.config_of("llama3")), jax.ShapeDtypeStruct((2,), jnp.int32)
  tokens, moves = (jax.ShapeDtypeStruct((2, n), jnp.int32) for n in (8, model.config.vocab_size))
  inputs = jax.jit(model.inputs).lower(model.specs, tokens)
  texts = jax.jit(model.generate, static_argnums=6).lower(model.specs, tokens, rows, rows, rows, moves, 4)
  for text in (inputs.as_text(), texts.as_text()):
    assert text.count("precision = [HIGHEST, HIGHEST]") == text.count("stablehlo.dot_general") > 10


def test_an_unknown_attention_is_refused():
  with pytest.raises(ValueError, match="unknown attention 'cudn'; did you mean 'cudnn'"):
    models.build(cases.config_of("llama2"), attention="cudn")
