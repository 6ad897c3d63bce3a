"""NaN and infinity, counted by the bits, in every float dtype and at the speed of memory."""

import jax
import numpy as np

_STEP = 1 << 18  # elements at once: what fits the cache
_EXPONENTS = {
  "float64": 0x7FF0000000000000, "float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00,
  "float8_e5m2": 0x7C, "float8_e4m3": 0x78, "float8_e3m4": 0x70,
}  # fmt: skip
"""Bits that are all set in infinity and NaN, and in nothing else."""
_NANS = {
  "float8_e4m3fn": (0x7F, 0x7F), "float8_e4m3fnuz": (0xFF, 0x80), "float8_e5m2fnuz": (0xFF, 0x80),
  "float8_e4m3b11fnuz": (0xFF, 0x80), "float8_e8m0fnu": (0xFF, 0xFF),
}  # fmt: skip
"""Mask and value of NaN where there is no infinity."""


def nonfinite(value: np.ndarray) -> int:
  """Number of elements that are NaN or infinite.

  Args:
    value: of any shape and dtype; 0 for dtypes that are not floating.

  >>> nonfinite(np.array([1, np.nan, -np.inf], np.float16))
  2
  """
  if not jax.numpy.issubdtype(value.dtype, np.inexact):
    return 0
  flat, name = np.ascontiguousarray(value).reshape(-1), str(value.dtype)
  if name in _EXPONENTS:
    mask = want = _EXPONENTS[name]
  elif name in _NANS:
    mask, want = _NANS[name]
  else:
    wide = flat if value.dtype.kind in "fc" else flat.astype(np.float32)
    return sum(int(np.count_nonzero(~np.isfinite(part))) for part in _parts(wide))
  bits = flat.view(f"u{value.dtype.itemsize}")
  m, w = bits.dtype.type(mask), bits.dtype.type(want)
  return sum(int(np.count_nonzero((part & m) == w)) for part in _parts(bits))


def _parts(flat: np.ndarray) -> list[np.ndarray]:
  return [flat[i : i + _STEP] for i in range(0, flat.size, _STEP)]
