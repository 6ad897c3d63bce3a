"""Task vectors of one tensor."""

from jax import Array

from merge_jax.operators.core import Leaf


def task_vectors(leaf: Leaf) -> tuple[Array, tuple[Array, ...]]:
  """The base, and the differences of K models to it; ValueError without a base."""
  if leaf.base is None:
    raise ValueError("The rule works on differences to a base: the leaf has none.")
  return leaf.base, tuple(expert - leaf.base for expert in leaf.experts)


def vectors(leaf: Leaf) -> tuple[Array, ...]:
  """Task vectors where there is a base, and the models where there is none."""
  return leaf.experts if leaf.base is None else task_vectors(leaf)[1]
