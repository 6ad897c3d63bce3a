"""Where a pool lies: on which mesh, and in the memory of the devices, of the hosts, or on disk."""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from merge_jax import host, models, sharding
from merge_jax.checkpoints import nbytes
from merge_jax.checkpoints.placement import Stacks
from merge_jax.operators import naming
from merge_jax.operators.naming import AxesRules
from merge_jax.preflight import Finding, Needs
from merge_jax.preflight.memory import per_device, verdict
from merge_jax.recycle.settings import Placement
from merge_jax.storage import available_memory, gib

MEMORIES = ("device", "host", "disk")
"""Where a pool can be held, the quickest first."""
Specs = Mapping[str, jax.ShapeDtypeStruct]


def rules(placement: Placement) -> sharding.Rules:
  """The sharding rules of a job."""
  own = ((pattern, rule if isinstance(rule, str) else P(*rule)) for pattern, rule in placement.rules)
  return (*own, *sharding.DECODER)


def layout(
  specs: Specs, mesh: Mesh, placement: Placement, stacks: Stacks, axes: AxesRules
) -> sharding.Layout:
  """Where the leaves of a merge lie.

  Raises:
    ValueError: a rule that does not fit a tensor, or is for none.
  """
  for pattern, _ in placement.rules:
    if all(naming.first_match(name, [pattern]) is None for name in specs):
      raise ValueError(
        f"config: placement.rules: {pattern!r} matches the whole name of no tensor; a name is "
        f"{next(iter(specs))!r}."
      )
  leaves = models.stack_specs(specs, stacks)
  return sharding.Layout(mesh, sharding.shardings(leaves, mesh, rules(placement), axes))


def choose(asked: str, needs: Needs) -> tuple[str, list[Finding]]:
  """Where the pool is held, and whether there is room.

  Args:
    asked: "device", "host", "disk", or "auto".
    needs: what a search holds if its pool is on the devices, with shardings.

  Returns:
    "device", "host" or "disk", and findings, of which one is an error if it has no room.
  """
  tried = {where: _verdict(where, needs) for where in (MEMORIES if asked == "auto" else (asked,))}
  fits = (where for where, found in tried.items() if all(one.level != "error" for one in found))
  where = next(fits, next(iter(tried)))
  found = tried[where]
  if where != "device":
    what = {"host": "in pinned host memory", "disk": "on disk, and read again for every candidate"}[where]
    why = " (it does not fit device memory)" if asked == "auto" else ""
    found.append(Finding("ok", "memory", f"the pool stays {what}{why}"))
  return where, found


def _verdict(where: str, needs: Needs) -> list[Finding]:
  if where == "device":
    return list(verdict(needs))
  if needs.batch > 1:
    return [Finding("error", "memory", f"a batch of {needs.batch} candidates needs its pool on the devices")]
  largest = max(needs.merged, key=lambda name: nbytes(needs.merged[name]))
  found = list(verdict(needs._replace(models=[{largest: model[largest]} for model in needs.models])))
  if where == "host":
    need = sum(
      nbytes
      for model in needs.models
      for device, nbytes in per_device(model, needs.shardings).items()
      if device.process_index == jax.process_index()
    )
    room = available_memory() // host.neighbours()
    detail = f"{gib(need)} of pinned host memory for the pool, {gib(room)} free"
    found.append(Finding("ok" if need <= room else "error", "memory", detail))
  return found
