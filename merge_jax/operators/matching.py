"""Whether models have the same tensors: the errors that come before any work."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from merge_jax.operators import naming
from merge_jax.operators.core import Leaf, PyTree


def flatten_models(
  experts: Sequence[PyTree] | Mapping[str, PyTree], base: PyTree | None
) -> tuple[list[int | str], list[dict[str, Any]], dict[str, Any] | None, Any]:
  """Flattens all models and checks that they have the same tensors."""
  if isinstance(experts, Mapping):
    ids: list[int | str] = list(experts)
    trees = list(experts.values())
  else:
    ids, trees = list(range(len(experts))), list(experts)
  if not trees:
    raise ValueError("There is no model to merge; give at least one expert.")
  flat, treedef = naming.flatten(trees[0])
  flats = [flat, *(naming.flatten(tree)[0] for tree in trees[1:])]
  base_flat = None if base is None else naming.flatten(base)[0]
  if not flat:
    raise ValueError("The models have no tensors.")
  others = [(f"expert {ids[i]!r}", other) for i, other in enumerate(flats)]
  if base_flat is not None:
    others.append(("the base", base_flat))
  for label, other in others[1:]:
    if other.keys() != flat.keys():
      name = min(other.keys() ^ flat.keys())
      where = label if name in flat else f"expert {ids[0]!r}"
      raise ValueError(f"Tensor {name!r} is missing in {where}; all models need the same tensors.")
    for name, value in other.items():
      if jnp.shape(value) != jnp.shape(flat[name]):
        raise ValueError(
          f"Tensor {name!r} has shape {jnp.shape(value)} in {label} but {jnp.shape(flat[name])} "
          f"in expert {ids[0]!r}; only models of one architecture merge."
        )
  return ids, flats, base_flat, treedef


def require_equal(name: str, leaf: Leaf) -> None:
  """Raises ValueError if a buffer that does not merge differs between concrete models."""
  values = (*leaf.experts, *(() if leaf.base is None else (leaf.base,)))
  if any(isinstance(value, jax.core.Tracer) for value in values):
    return
  if any(not bool(jnp.all(value == values[0])) for value in values[1:]):
    raise ValueError(
      f"Tensor {name!r} of dtype {leaf.experts[0].dtype} differs between the models; only floating "
      "tensors merge. Make it equal, or leave it out."
    )
