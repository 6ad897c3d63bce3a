"""Will these checkpoints merge, and do they fit? Asked before anything long starts."""

from merge_jax.preflight.check import check as check
from merge_jax.preflight.check import labels as labels
from merge_jax.preflight.check import open_pool as open_pool
from merge_jax.preflight.check import read as read
from merge_jax.preflight.findings import Finding as Finding
from merge_jax.preflight.findings import PreflightError as PreflightError
from merge_jax.preflight.findings import require as require
from merge_jax.preflight.findings import table as table
from merge_jax.preflight.memory import Needs as Needs
from merge_jax.preflight.values import ties as ties
