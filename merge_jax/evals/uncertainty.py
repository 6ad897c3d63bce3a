"""How sure a score is: bootstrap errors over examples, paired where two models are compared."""

import numpy as np

from merge_jax.evals.scoring import Examples
from merge_jax.evals.tasks import sign


def resampled(examples: Examples, draws: int = 1000, seed: int = 0) -> np.ndarray:
  """Scores of resampled examples, higher is better: float64 `[draws, tasks]`.

  The same seed draws the same examples, so differences between two models' results are paired.
  """
  generator = np.random.default_rng(seed)
  columns = []
  for i, metric in enumerate(examples.metrics):
    top, bottom = examples.of(i)
    counts = generator.multinomial(len(top), np.full(len(top), 1 / len(top)), size=draws)
    columns.append(sign(metric) * (counts @ top) / (counts @ bottom))
  return np.stack(columns, axis=1)


def standard_errors(examples: Examples, draws: int = 1000) -> dict[str, float]:
  """Bootstrap standard error of each task's score and of their mean (`average`)."""
  scores = resampled(examples, draws)
  errors = dict(zip(examples.tasks, scores.std(axis=0, ddof=1).tolist(), strict=True))
  return errors | {"average": float(scores.mean(axis=1).std(ddof=1))}


def paired_difference(a: Examples, b: Examples, draws: int = 1000) -> tuple[float, float]:
  """Mean over tasks of a's score less b's (higher is better), and its paired bootstrap error."""
  signs = np.array([sign(metric) for metric in a.metrics])
  scores = [np.array(list(x.scores().values())) * signs for x in (a, b)]
  gains = (resampled(a, draws) - resampled(b, draws)).mean(axis=1)
  return float((scores[0] - scores[1]).mean()), float(gains.std(ddof=1))
