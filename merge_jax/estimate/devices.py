"""What accelerators can do, as their makers publish it, and what this machine can, measured."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merge_jax.errors import unknown
from merge_jax.evals.objective import quickest
from merge_jax.storage import available_memory


class Device(NamedTuple):
  """One accelerator.

  Attributes:
    name: as people call it.
    memory: bytes.
    flops: dense bfloat16 matrix products, FLOP a second.
    float32: the same in float32; TPUs make six passes of bfloat16.
    bandwidth: of its memory, bytes a second.
    link: to its neighbours of one host or slice, bytes a second and direction.
    network: between hosts, bytes a second and device; a TPU slice has its link everywhere.
    per_host: devices of a host.
    host_memory: bytes of a host that is usual for them.
    efficiency: share of its `rate` that an evaluation is taken to reach.
  """

  name: str
  memory: float
  flops: float
  float32: float
  bandwidth: float
  link: float
  network: float
  per_host: int
  host_memory: float
  efficiency: float = 0.4

  def rate(self, dtype: str) -> float:
    """FLOP a second of matrix products in a dtype.

    >>> [f"{DEVICES[name].rate('float32'):.3g}" for name in ("h100", "tpu-v5e")]
    ['6.7e+13', '3.28e+13']
    """
    return self.float32 if dtype == "float32" else self.flops


_GIB = 2.0**30

DEVICES: dict[str, Device] = {
  one.name: one
  for one in (
    Device("a100", 79.2 * _GIB, 312e12, 19.5e12, 2.04e12, 300e9, 25e9, 8, 1000 * _GIB),
    Device("h100", 79.6 * _GIB, 989e12, 67e12, 3.35e12, 450e9, 50e9, 8, 2000 * _GIB),
    Device("h200", 140.4 * _GIB, 989e12, 67e12, 4.8e12, 450e9, 50e9, 8, 2000 * _GIB),
    Device("b200", 179.0 * _GIB, 2250e12, 80e12, 7.7e12, 900e9, 50e9, 8, 2000 * _GIB),
    Device("tpu-v4", 32 * _GIB, 275e12, 275e12 / 6, 1.2e12, 150e9, 150e9, 4, 400 * _GIB),
    Device("tpu-v5e", 16 * _GIB, 197e12, 197e12 / 6, 0.82e12, 100e9, 100e9, 4, 190 * _GIB),
    Device("tpu-v5p", 95 * _GIB, 459e12, 459e12 / 6, 2.765e12, 300e9, 300e9, 4, 440 * _GIB),
    Device("tpu-v6e", 32 * _GIB, 918e12, 918e12 / 6, 1.64e12, 224e9, 224e9, 4, 700 * _GIB),
  )
}
"""Data sheets: dense rates without sparsity; links in one direction."""

MEASURED = "cpu"
"""The name of this machine's processor among the devices."""


def device(name: str) -> Device:
  """A device by name; "cpu" is this machine, measured in a second.

  Raises:
    ValueError: an unknown one.

  >>> device("h100").memory / 2**30
  79.6
  """
  if name == MEASURED:
    return measured()
  if name not in DEVICES:
    raise ValueError(unknown("device", name, (*DEVICES, MEASURED), "--device"))
  return DEVICES[name]


def measured() -> Device:
  """This machine: float32 matrix products, and copies that read and write memory."""
  a = jnp.ones((1024, 1024), jnp.float32)
  rate = 2 * 1024**3 / quickest(jax.jit(lambda: a @ a), 7)
  big = np.ones(1 << 24, np.float32)
  out = np.empty_like(big)
  bandwidth = 2 * big.nbytes / quickest(lambda: np.copyto(out, big), 7)
  memory = float(available_memory())
  return Device(MEASURED, memory, rate, rate, bandwidth, bandwidth, bandwidth, 1, memory, efficiency=0.6)
