"""From checkpoints through operators to a checkpoint, in bounded memory."""

from merge_jax.streaming.engine import Stopped as Stopped
from merge_jax.streaming.engine import stream as stream
from merge_jax.streaming.job import Job as Job
from merge_jax.streaming.job import Readable as Readable
from merge_jax.streaming.job import Source as Source
