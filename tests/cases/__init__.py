"""All operators with float64 references: a module for each family, whose `CASES` are found here."""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

import jax
import pytest

import merge_jax as mj
from tests.cases.common import Case

CASES: dict[str, Case] = {}
for _module in pkgutil.iter_modules(__path__):
  CASES |= getattr(importlib.import_module(f"{__name__}.{_module.name}"), "CASES", {})

FAMILIES = (
  "linear", "slerp", "task_arithmetic", "ties", "dare_ties", "sce", "karcher", "fisher", "regmean", "tsv",
)  # fmt: skip
"""One operator of each: on these a law is always tried, on the others with `./launch/test --all`."""


def every(names: Iterable[str] = CASES, group: str = "operator", always: Iterable[str] = FAMILIES) -> Any:
  """Parameters of a test; those of one case run in one process, where its programs are compiled once."""
  found, always = [], set(always)
  for name in names:
    marks = [pytest.mark.xdist_group(f"{group} {name}")]
    found.append(pytest.param(name, marks=marks if name in always else [*marks, pytest.mark.thorough]))
  return found


@functools.cache
def program(name: str) -> Callable[[Any, Any], Any]:
  """`(experts, kwargs)` to the case's merge, compiled."""
  case = CASES[name]
  return jax.jit(lambda experts, kwargs: mj.merge(case.operator, experts, case.weights, **kwargs))
