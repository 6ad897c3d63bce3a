"""Fine-tuning with optax: makes pools of checkpoints and experts."""

from merge_jax.training.loop import Recipe as Recipe
from merge_jax.training.loop import corpus as corpus
from merge_jax.training.loop import train as train
