"""How sure a score is: bootstrap errors over examples, paired where two models are compared.

What is undefined is NaN: an error from fewer than two examples or two draws.
"""

import numpy as np

from merge_jax.evals.examples import Examples


@np.errstate(invalid="ignore", divide="ignore")
def resampled(examples: Examples, draws: int = 1000, seed: int = 0) -> np.ndarray:
  """Scores of resampled examples, higher is better: float64 `[draws, tasks]`.

  The same seed draws the same examples, so differences between two models' results are paired.
  """
  generator = np.random.default_rng(seed)
  columns = []
  for i, sign in enumerate(examples.signs):
    top, bottom = examples.of(i)
    if len(top) < 2:
      columns.append(np.full(draws, np.nan))
      continue
    counts = generator.multinomial(len(top), np.full(len(top), 1 / len(top)), size=draws)
    columns.append(sign * (counts @ top) / (counts @ bottom))
  return np.stack(columns, axis=1)


def standard_errors(examples: Examples, draws: int = 1000) -> dict[str, float]:
  """Bootstrap standard error of each task's score and of their mean (`average`)."""
  scores = resampled(examples, draws)
  errors = dict(zip(examples.tasks, _deviation(scores).tolist(), strict=True))
  return errors | {"average": float(_deviation(scores.mean(axis=1)))}


@np.errstate(invalid="ignore")
def paired_difference(a: Examples, b: Examples, draws: int = 1000) -> tuple[float, float]:
  """Mean over tasks of a's score less b's (higher is better), and its paired bootstrap error."""
  scores = [np.array(list(x.scores().values())) * np.array(x.signs) for x in (a, b)]
  gains = (resampled(a, draws) - resampled(b, draws)).mean(axis=1)
  return float((scores[0] - scores[1]).mean()), float(_deviation(gains))


@np.errstate(invalid="ignore")
def _deviation(draws: np.ndarray) -> np.ndarray:
  return draws.std(axis=0, ddof=1) if len(draws) > 1 else np.full(draws.shape[1:], np.nan)
