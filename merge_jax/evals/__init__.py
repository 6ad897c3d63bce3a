"""Tasks and their scores: JSONL in, one jitted program, a number for each example out."""

from merge_jax.evals.batching import Batches as Batches
from merge_jax.evals.batching import encode as encode
from merge_jax.evals.batching import pack as pack
from merge_jax.evals.examples import Examples as Examples
from merge_jax.evals.function_suite import CommandSuite as CommandSuite
from merge_jax.evals.function_suite import FunctionSuite as FunctionSuite
from merge_jax.evals.metrics import METRICS as METRICS
from merge_jax.evals.metrics import Metric as Metric
from merge_jax.evals.objective import Evaluation as Evaluation
from merge_jax.evals.objective import Merge as Merge
from merge_jax.evals.scoring import Scorer as Scorer
from merge_jax.evals.scoring import make_scorer as make_scorer
from merge_jax.evals.splits import SPLITS as SPLITS
from merge_jax.evals.splits import split as split
from merge_jax.evals.suite import Suite as Suite
from merge_jax.evals.task_suite import TaskSuite as TaskSuite
from merge_jax.evals.tasks import Example as Example
from merge_jax.evals.tasks import Task as Task
from merge_jax.evals.tasks import load as load
from merge_jax.evals.tokens import Tokens as Tokens
