"""Where tensors come from and go to: lazy reads, sharded placement, writes.

pool = [checkpoints.open(path) for path in paths]     names, shapes, dtypes: no data read
params = pool[0].load()                               {name: array}
checkpoints.write(folder, merged, like=pool[0])       in the pool's own format
"""

from merge_jax.checkpoints.base import SIDECARS as SIDECARS
from merge_jax.checkpoints.base import Checkpoint as Checkpoint
from merge_jax.checkpoints.formats import FORMATS as FORMATS
from merge_jax.checkpoints.formats import open_checkpoint as open_checkpoint
from merge_jax.checkpoints.formats import write as write
from merge_jax.checkpoints.huggingface import DTYPES as DTYPES

open = open_checkpoint
