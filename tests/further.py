"""What `./launch/test` leaves to `./launch/test --all`: further cases, and long ways through whole jobs."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def further(*values: Any, id: str | None = None) -> Any:
  """A case of a test beyond those that are always tried."""
  return pytest.param(*values, id=id, marks=pytest.mark.thorough)


def beyond(always: Collection[Any], values: Iterable[Any]) -> list[Any]:
  """Cases of a test, of which some are always tried."""
  return [value if value in always else further(value) for value in values]
