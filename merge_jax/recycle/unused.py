"""Settings that do nothing beside the others: they are said, so that nobody looks for their effect."""

from collections.abc import Iterator

from merge_jax.recycle.settings import Evals, Harness, Scorer, Search, Settings, Splits
from merge_jax.search.options import Options
from merge_jax.search.proposers import PROPOSERS, TUNING


def notes(settings: Settings, proposer: str, options: Options) -> Iterator[str]:
  """A sentence for each that was changed and is not looked at, and where there is nothing to search.

  Args:
    settings: of the job.
    proposer: who searches.
    options: what it is made from.
  """
  search, default, batch = settings.search, Search(), options.batch
  if options.count == 1 and not options.based:
    yield (
      "Every merge of one checkpoint is that checkpoint: give more, or --base and a method that scales the "
      "difference to it."
    )
  for name in TUNING:
    if name not in PROPOSERS[proposer].takes and getattr(search, name) != getattr(default, name):
      yield f"config.search.{name} does nothing: {proposer} searches, which does not look at it."
  if batch > 1 and not PROPOSERS[proposer].batches:
    yield (
      f"{proposer} asks for one candidate after the other: each takes as long as {batch}, which is the batch."
    )
  if search.in_turn and batch == 1:
    yield "config.search.in_turn does nothing: batches have one candidate."
  if settings.scorer.command and search.batch > 1:
    yield "config.search.batch does nothing: the scorer command scores one merge after the other."
  if not settings.scorer.command and settings.scorer != Scorer(nan=settings.scorer.nan):
    yield "config.scorer does nothing: there is no command."
  for name, kind in (("splits", Splits), ("evals", Evals), ("harness", Harness)):
    if settings.scorer.command and getattr(settings, name) != kind():
      yield f"config.{name} does nothing: the scorer command has examples of its own."
