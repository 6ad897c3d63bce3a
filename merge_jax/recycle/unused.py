"""Settings that do nothing beside the others: they are said, so that nobody looks for their effect."""

from collections.abc import Iterator

from merge_jax.recycle.settings import Evals, Harness, Scorer, Search, Settings, Splits
from merge_jax.search.proposers import PROPOSERS, TUNING


def notes(settings: Settings, proposer: str, batch: int) -> Iterator[str]:
  """A sentence for each that was changed and is not looked at.

  Args:
    settings: of the job.
    proposer: who searches.
    batch: candidates of one program call.
  """
  search, default = settings.search, Search()
  for name in TUNING:
    if name not in PROPOSERS[proposer].takes and getattr(search, name) != getattr(default, name):
      yield f"config.search.{name} does nothing: {proposer} searches, which does not look at it."
  if batch > 1 and not PROPOSERS[proposer].batches:
    yield (
      f"{proposer} asks for one candidate after the other: each takes as long as {batch}, which is the batch."
    )
  if search.in_turn and batch == 1:
    yield "config.search.in_turn does nothing: batches have one candidate."
  if not settings.scorer.command and settings.scorer != Scorer():
    yield "config.scorer does nothing: there is no command."
  for name, kind in (("splits", Splits), ("evals", Evals), ("harness", Harness)):
    if settings.scorer.command and getattr(settings, name) != kind():
      yield f"config.{name} does nothing: the scorer command has examples of its own."
