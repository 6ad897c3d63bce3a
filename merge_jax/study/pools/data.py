"""Task files of a suite of pools: every task with choices, so that it serves likelihoods and preferences."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from merge_jax import evals
from merge_jax.evals import metrics
from merge_jax.evals import tasks as task_files
from merge_jax.study.data import Data, once, puzzles, write_lines
from merge_jax.study.pools.settings import Puzzles
from merge_jax.training import puzzles as tokens

VERSION = 3
"""Of what is written from the same options."""


def make(folder: Path, options: Puzzles) -> Data:
  """Writes the files, or finds them; see `study.data.puzzles.make`.

  Raises:
    ValueError: a puzzle that is not known or stands twice, or that has too few items.
    ModuleNotFoundError: reasoning-gym is missing.
  """
  every = (*options.tasks, *options.others)
  puzzles.check(every, "config: data")
  said = msgspec.to_builtins(options) | {"version": VERSION}

  def write(partial: Path) -> None:
    for name in every:
      _write(partial, name, options)

  target = once(folder, "puzzles", said, write)

  def files(part: str, names: Iterable[str]) -> dict[str, Path]:
    return {name: target / part / f"{name}.jsonl" for name in names}

  asked = options.tasks
  return Data(
    tokens.tokenizer().to_str(), files("train", asked), files("tasks", asked), files("pretrain", every), {}
  )


def split(data: Data, options: Puzzles) -> dict[str, list[evals.Task]]:
  """The tasks by split."""
  loaded = [task_files.load(f"{data.tasks[name]}:{metric}") for name, metric in options.tasks.items()]
  limits = (options.search, options.validation, options.test)
  fractions = tuple(limit / sum(limits) for limit in limits)
  return evals.split(loaded, (fractions[0], fractions[1], fractions[2]), limits=limits).tasks


def _write(folder: Path, name: str, options: Puzzles) -> None:
  # More than the limits: splits are binomial around their shares.
  wanted = int(1.1 * (options.search + options.validation + options.test)) + 20
  drawn = puzzles.Options((name,), (), (), options.train, wanted, options.share)
  items = puzzles.draw(name, drawn, 0)
  files: dict[str, Iterable[Mapping[str, Any]]] = {"pretrain": puzzles.texts(name, items.train)}
  if name in options.tasks:
    asked = functools.partial(puzzles.with_choices, name, wording=puzzles.INSTRUCTION, seed=name)
    chosen = metrics.named(options.tasks[name]).fits("choices") and options.tasks[name] != "loss"
    files["train"] = asked(items.train)
    files["tasks"] = asked(items.evaluation) if chosen else puzzles.instructions(name, items.evaluation)
  for part, records in files.items():
    write_lines(folder / part / f"{name}.jsonl", records)
