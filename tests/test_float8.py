"""Block-scaled float8 reads as the numbers that it stands for; other quantisations are refused."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from merge_jax import checkpoints, sharding

RNG = np.random.default_rng(0)
F8 = ml_dtypes.float8_e4m3fn


def quantised(shape, block, dtype=F8):
  """Random codes and factors, and the float64 numbers that they stand for, element by element."""
  codes = RNG.normal(size=shape).astype(np.float32).astype(dtype)
  lead, (rows, columns) = shape[:-2], shape[-2:]
  scale = RNG.uniform(0.5, 2, (*lead, -(-rows // block[0]), -(-columns // block[1]))).astype(np.float32)
  values = codes.astype(np.float64)
  for at in np.ndindex(*shape):
    values[at] *= scale[(*at[:-2], at[-2] // block[0], at[-1] // block[1])]
  return codes, scale, values


def folder(path, tensors, config=None):
  checkpoints.write(path, tensors)
  if config is not None:
    (path / "config.json").write_text(json.dumps(config))
  return checkpoints.open(path)


@pytest.mark.parametrize("shape", [(6, 8), (7, 9), (2, 3), (2, 5, 9), (1, 1)])
@pytest.mark.parametrize("block", [(4, 4), (2, 3)])
@pytest.mark.parametrize("dtype", [F8, ml_dtypes.float8_e5m2])
def test_values_of_whole_tensors_and_slices(tmp_path, shape, block, dtype):
  codes, scale, values = quantised(shape, block, dtype)
  config = {
    "torch_dtype": "float16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": block},
  }
  tensors = {"x.weight": codes, "x.weight_scale_inv": scale, "norm.weight": np.ones(3, ml_dtypes.bfloat16)}
  opened = folder(tmp_path, tensors, config)
  assert {n: (s.shape, s.dtype) for n, s in opened.specs.items()} == {
    "x.weight": (shape, np.float32), "norm.weight": ((3,), ml_dtypes.bfloat16),
  }  # fmt: skip
  read = opened.read("x.weight")
  assert read.dtype == np.float32
  np.testing.assert_array_equal(read, values.astype(np.float32))  # one product of 4 and 24 bits, rounded once
  for index in ((), (slice(1, 2),), (*[slice(None)] * (len(shape) - 1), slice(1, 7)), (slice(0, 0),)):
    np.testing.assert_array_equal(opened.read("x.weight", index), read[index])
  assert opened.result_dtype("x.weight") == np.float16
  assert opened.result_dtype("norm.weight") == ml_dtypes.bfloat16


def test_blocks_are_128_unless_told_and_scales_have_any_float_dtype(tmp_path):
  codes, scale, _ = quantised((130, 260), (128, 128))
  for i, dtype in enumerate((np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu)):
    opened = folder(tmp_path / str(i), {"x.weight": codes, "x.weight_scale_inv": scale.astype(dtype)})
    wide = np.repeat(np.repeat(scale.astype(dtype).astype(np.float32), 128, 0), 128, 1)[:130, :260]
    np.testing.assert_array_equal(opened.read("x.weight"), codes.astype(np.float32) * wide)
    assert opened.config is None and opened.result_dtype("x.weight") == ml_dtypes.bfloat16
  one = folder(tmp_path / "one", {"x.weight": codes, "x.weight_scale_inv": np.float32(0.5)})
  np.testing.assert_array_equal(one.read("x.weight"), codes.astype(np.float32) / 2)
  plain = checkpoints.open(tmp_path / "one" / "model.safetensors")
  np.testing.assert_array_equal(plain.read("x.weight"), one.read("x.weight"))


def test_shards_are_placed_and_results_are_not_quantised(tmp_path):
  codes, scale, values = quantised((8, 16), (4, 4))
  config = {
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 4]},
    "torch_dtype": "bfloat16",
  }
  tensors = {"x.weight": codes, "x.weight_scale_inv": scale}
  opened = folder(tmp_path / "in", tensors, config)
  (tmp_path / "in" / "modeling_x.py").write_text("raise RuntimeError")
  shardings = sharding.shardings(opened.specs, sharding.make_mesh({"fsdp": 4, "tensor": 2}))
  placed = opened.load(shardings)["x.weight"]
  assert placed.dtype == jnp.float32 and placed.sharding == shardings["x.weight"]
  np.testing.assert_array_equal(placed, values.astype(np.float32))
  merged = {"x.weight": np.asarray(placed).astype(opened.result_dtype("x.weight"))}
  checkpoints.write(tmp_path / "out", merged, like=opened)
  out = checkpoints.open(tmp_path / "out")
  assert out.config == {"torch_dtype": "bfloat16"} and dict(out.specs).keys() == {"x.weight"}
  assert (tmp_path / "out" / "modeling_x.py").exists()
  assert opened.digest() == checkpoints.open(tmp_path / "in").digest()


def test_float8_without_scales_stays_float8(tmp_path):
  codes = np.ones((3, 4), F8)
  opened = folder(tmp_path, {"x.weight": codes})
  assert opened.specs["x.weight"].dtype == F8 and opened.result_dtype("x.weight") == F8


CODES = np.ones((4, 4), F8)
SCALE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
  ("tensors", "method", "message"),
  [
    ({"x.weight_scale_inv": SCALE}, "fp8", "'x.weight_scale_inv' has no float8 tensor 'x.weight'"),
    (
      {"x.weight": CODES.astype(np.float32), "x.weight_scale_inv": SCALE},
      "fp8",
      "has no float8 tensor 'x.weight'",
    ),
    (
      {"x.weight": CODES, "x.weight_scale_inv": np.ones((2, 3), np.float32)},
      "fp8",
      r"float32\[2, 3\]; expected",
    ),
    (
      {"x.weight": CODES, "x.weight_scale_inv": np.ones((1, 1), np.int32)},
      "fp8",
      "_scale_inv' is int32, quantised",
    ),
    ({"x.weight": CODES, "x.weight_scale": SCALE}, "fbgemm_fp8", "float8_e4m3fn, quantised by fbgemm_fp8"),
    (
      {"x.qweight": np.ones((4, 4), np.int32)},
      "gptq",
      "'x.qweight' is int32, quantised by gptq: a merge would",
    ),
    ({"x.qzeros": np.ones((4, 4), np.int32)}, "awq", "quantised by awq"),
    (
      {"x.weight": np.ones((8, 1), np.uint8)},
      "bitsandbytes",
      "'x.weight' is uint8, quantised by bitsandbytes",
    ),
    ({"x.weight": np.ones((8, 8), np.int8)}, None, "'x.weight' is int8, quantised: a merge would"),
    ({"e.gate_up_proj_blocks": np.ones((2, 4, 4), np.uint8)}, "mxfp4", "quantised by mxfp4"),
    ({"x.weight_packed": np.ones((4, 4), np.int32)}, "compressed-tensors", "quantised by compressed-tensors"),
    ({"x.strange": np.ones((4, 4), np.uint8)}, "later", "'x.strange' is uint8, quantised by later"),
  ],
)
def test_what_is_not_read_is_refused(tmp_path, tensors, method, message):
  checkpoints.write(tmp_path, tensors)
  (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method or ""}}))
  with pytest.raises(ValueError, match=message) as raised:
    checkpoints.open(tmp_path)
  assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_scale_of_a_tied_head_says_whose_numbers_the_head_has(tmp_path):
  names = ("model.embed_tokens.weight", "lm_head.weight")
  tensors = {n + s: value for n in names for s, value in (("", CODES), ("_scale_inv", SCALE))}
  config = {"model_type": "llama", "tie_word_embeddings": True}
  with pytest.raises(ValueError, match=r"no float8 tensor 'lm_head.weight' of its own: that is 'model.embed"):
    folder(tmp_path, tensors, config)


def test_buffers_and_stale_configs_are_not_refused(tmp_path):
  """Masks and positions are no weights, and many full-precision models keep the config of their training."""
  tensors = {
    "h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8), "position_ids": np.ones((1, 8), np.int64),
    "steps": np.int32(3), "x.weight": np.ones((4, 4), ml_dtypes.bfloat16),
  }  # fmt: skip
  opened = folder(tmp_path / "a", tensors)
  assert opened.specs.keys() == tensors.keys()
  del tensors["h.0.attn.bias"]
  for i, given in enumerate(({"quant_method": "bitsandbytes", "load_in_4bit": True}, None)):
    config = {"quantization_config": given}
    assert folder(tmp_path / str(i), tensors, config).config == config
  with pytest.raises(ValueError, match=r"quantization_config: weight_block_size\[0\] is 0; expected"):
    folder(tmp_path / "bad", tensors, {"quantization_config": {"weight_block_size": [0, 1]}})
