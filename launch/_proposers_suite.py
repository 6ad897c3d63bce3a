"""Ways of searching on a suite of pools; see `merge_jax/study/pools` and `configs/pools_small.py`."""

from typing import Any

from absl import flags

from merge_jax import storage
from merge_jax.study.pools import job, settings, table

from . import _common, _config

_CONFIG = _config.define_config("pools_small")
_FOLDER = flags.DEFINE_string("output_dir", "", "proposers: folder of the suite; the same command continues.")
_WORKERS = flags.DEFINE_integer("workers", 1, "proposers: processes side by side.", 1)
_SEEDS = flags.DEFINE_list("seeds", ["tune"], "proposers: parts of the training seeds, tune and confirm.")
_PROPOSERS = flags.DEFINE_list("proposers", None, "proposers: names of contestants; default all, none: '-'.")
_ATTAINABLE = flags.DEFINE_bool("attainable", False, "proposers: also find out what there is to gain.")
_KINDS = flags.DEFINE_list("kinds", [], "proposers: kinds of pools; default all.")
_SIZES = flags.DEFINE_list("sizes", [], "proposers: sizes of models; default all.")


def suite(repeats: int) -> dict[str, Any]:
  """Trains what is missing, runs who is missing, prints the table; what failed is in the result."""
  del repeats
  if not _FOLDER.value:
    raise ValueError("--suite=proposers needs --output_dir, where pools and results are kept.")
  names = None if _PROPOSERS.value is None else [name for name in _PROPOSERS.value if name != "-"]
  made = settings.from_mapping(_config.config_values(_CONFIG))
  found = job.compare(
    made, storage.disk_destination(_FOLDER.value, "--output_dir"),
    workers=_WORKERS.value, parts=_SEEDS.value, names=names, kinds=_KINDS.value, sizes=_SIZES.value,
    attainable=_ATTAINABLE.value, stop=_common.StopFlag(),
  )  # fmt: skip
  print(table.text(job.compared(found, made.budgets[-1])))
  return {"output_dir": _FOLDER.value, "lines": len(found["lines"]), "failed": found["failed"]}
