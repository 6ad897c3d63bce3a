"""All operators with float64 references: a module for each family, whose `CASES` are found here."""

import importlib
import pkgutil

from tests.cases.common import Case

CASES: dict[str, Case] = {}
for _module in pkgutil.iter_modules(__path__):
  CASES |= getattr(importlib.import_module(f"{__name__}.{_module.name}"), "CASES", {})
