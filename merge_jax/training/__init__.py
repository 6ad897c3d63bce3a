"""Fine-tuning with optax: makes pools of checkpoints and experts."""

from merge_jax.training.corpus import Corpus as Corpus
from merge_jax.training.corpus import corpus as corpus
from merge_jax.training.loop import Diverged as Diverged
from merge_jax.training.loop import State as State
from merge_jax.training.loop import begin as begin
from merge_jax.training.loop import result as result
from merge_jax.training.loop import train as train
from merge_jax.training.recipe import Recipe as Recipe
from merge_jax.training.recipe import read_recipe as read_recipe
from merge_jax.training.recipe import shares as shares
from merge_jax.training.resume import Stopped as Stopped
from merge_jax.training.resume import continued as continued
from merge_jax.training.resume import refuse_written as refuse_written
from merge_jax.training.resume import states as states
from merge_jax.training.resume import train_into as train_into
