"""Tasks and their scores: JSONL in, one jitted program, a number for each example out."""

from merge_jax.evals.batching import Batches as Batches
from merge_jax.evals.batching import encode as encode
from merge_jax.evals.batching import pack as pack
from merge_jax.evals.scoring import Examples as Examples
from merge_jax.evals.scoring import Scorer as Scorer
from merge_jax.evals.scoring import make_scorer as make_scorer
from merge_jax.evals.splits import SPLITS as SPLITS
from merge_jax.evals.splits import split as split
from merge_jax.evals.tasks import METRICS as METRICS
from merge_jax.evals.tasks import Example as Example
from merge_jax.evals.tasks import Task as Task
from merge_jax.evals.tasks import load as load
from merge_jax.evals.tokens import Tokens as Tokens
