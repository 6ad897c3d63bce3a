"""The main job: from a pool of checkpoints and task files to the best merge, with the evidence."""

from merge_jax.recycle.folder import Refused as Refused
from merge_jax.recycle.folder import RunFolder as RunFolder
from merge_jax.recycle.folder import completed as completed
from merge_jax.recycle.job import Stopped as Stopped
from merge_jax.recycle.job import describe as describe
from merge_jax.recycle.job import plan as plan
from merge_jax.recycle.job import recycle as recycle
from merge_jax.recycle.job import write_report as write_report
from merge_jax.recycle.mixing import mixture as mixture
from merge_jax.recycle.problem import Problem as Problem
from merge_jax.recycle.problem import build as build
from merge_jax.recycle.problem import check as check
from merge_jax.recycle.selection import select as select
from merge_jax.recycle.settings import Settings as Settings
