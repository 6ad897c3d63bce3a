"""Where tensors come from and go to: lazy reads, sharded placement, writes.

pool = [checkpoints.open(path) for path in paths]     names, shapes, dtypes: no data read
params = pool[0].load()                               {name: array}
params = checkpoints.place(pool[0], shardings)        every shard from its own bytes
checkpoints.write(folder, merged, like=pool[0])       in the pool's own format
adapted = checkpoints.with_adapter(pool[0], folder)   a LoRA in it
with checkpoints.writer(folder, specs, like=pool[0]) as out: out.write(name, value)
"""

from merge_jax.checkpoints.adapters import with_adapter as with_adapter
from merge_jax.checkpoints.base import Checkpoint as Checkpoint
from merge_jax.checkpoints.base import Index as Index
from merge_jax.checkpoints.base import Writer as Writer
from merge_jax.checkpoints.finite import nonfinite as nonfinite
from merge_jax.checkpoints.formats import FORMATS as FORMATS
from merge_jax.checkpoints.formats import Format as Format
from merge_jax.checkpoints.formats import open as open
from merge_jax.checkpoints.formats import write as write
from merge_jax.checkpoints.formats import writer as writer
from merge_jax.checkpoints.placement import place as place
from merge_jax.checkpoints.safetensors_file import DTYPES as DTYPES
from merge_jax.checkpoints.safetensors_file import nbytes as nbytes
from merge_jax.checkpoints.sidecars import SIDECARS as SIDECARS
