"""The main job: from a pool of checkpoints and task files to the best merge, with the evidence."""

from merge_jax.recycle.job import Refused as Refused
from merge_jax.recycle.job import Stopped as Stopped
from merge_jax.recycle.job import plan as plan
from merge_jax.recycle.job import recycle as recycle
from merge_jax.recycle.settings import Settings as Settings
