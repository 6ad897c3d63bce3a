"""A surrogate of a model's answers as functions of the weights, and a search on it."""

from merge_jax.search.surrogate.proposer import surrogate as surrogate
