"""What a compiled program sends between devices, read from its optimised HLO."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

KINDS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: one of `KINDS`.
    bytes: what each run of it leaves on a device.
    times: how often it runs when the program does: the product of the trip counts of the loops around it.
    exact: whether these are all known; a loop whose trip count is not known until it ends counts once.
  """

  kind: str
  bytes: int
  times: int = 1
  exact: bool = True


def collectives(program: Any) -> list[Collective]:
  """The collective operations of a compiled program, in the order in which it names them.

  Asynchronous pairs are one operation, tuples the sum of their arrays; of branches each counts as if it were
  taken. Which devices take part (`replica_groups`) is not looked at, transfers to the host do not count.

  Args:
    program: what `jax.jit(f).lower(…).compile()` gives, or its text.

  Raises:
    ValueError: text without an entry computation.

  >>> text = '''
  ... %body (at: (s32[], bf16[2])) -> (s32[], bf16[2]) {
  ...   %sum = bf16[2]{0} all-reduce(%part), to_apply=%add
  ... }
  ... ENTRY %main (x: bf16[2]) -> bf16[2] {
  ...   %loop = (s32[], bf16[2]) while(%x), body=%body, backend_config={"known_trip_count":{"n":"10"}}
  ... }
  ... '''
  >>> collectives(text)
  [Collective(kind='all-reduce', bytes=4, times=10, exact=True)]
  """
  text = program if isinstance(program, str) else program.as_text()
  computations, entry = _computations(text)
  if entry is None:
    raise ValueError("The program has no ENTRY computation; pass a compiled one, or the text of its HLO.")
  return list(_walk(computations, entry, 1, True))


def by_kind(found: Iterable[Collective]) -> dict[str, tuple[int, int]]:
  """How often each kind runs, and the bytes that it leaves on a device in all.

  >>> by_kind([Collective("all-reduce", 4, 10), Collective("all-gather", 64), Collective("all-reduce", 8)])
  {'all-reduce': (11, 48), 'all-gather': (1, 64)}
  """
  totals: dict[str, tuple[int, int]] = {}
  for one in found:
    times, size = totals.get(one.kind, (0, 0))
    totals[one.kind] = times + one.times, size + one.times * one.bytes
  return totals


def size_of(shape: str) -> int:
  """Bytes of an HLO shape, or of all arrays of a tuple.

  >>> size_of("(bf16[2,3]{1,0:T(8,128)(2,1)}, pred[], f8e4m3fn[4]{0}, s4[3], token[])")
  19
  """
  bits = 0
  for kind, width, dims in _ARRAY.findall(shape):
    each = 8 if kind == "pred" else int(width)
    bits += 8 * math.ceil(math.prod(int(d.lstrip(" <=")) for d in dims.split(",") if d) * each / 8)
  return bits // 8


_ARRAY = re.compile(r"\b(pred|(?:bf|[fsuc])(\d+)\w*)\[([\d,<= ]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\(")
_CALLED = re.compile(
  r"\b(body|condition|calls|to_apply|true_computation|false_computation|branch_computations|called_computations)"
  r"=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')

Called = list[tuple[str, int, bool]]  # computations, how often they run, whether that is known
Computation = list[tuple[Collective | None, Called]]


def _computations(text: str) -> tuple[dict[str, Computation], str | None]:
  """The operations that matter of every computation, and the name of the first that runs."""
  computations: dict[str, Computation] = {}
  entry, current = None, []
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif operation := _OPERATION.match(line):
      shape, name = operation.groups()
      kind = name.removesuffix("-done")  # a start's shape may have operands and counters, too
      collective = Collective(kind, size_of(shape)) if kind in KINDS else None
      called = _called(line)
      if collective is not None or called:
        current.append((collective, called))
  return computations, entry


def _called(line: str) -> Called:
  trips = _TRIPS.search(line)
  loop = {"body": int(trips[1]), "condition": int(trips[1]) + 1} if trips else {}
  called = []
  for role, names in _CALLED.findall(line):
    known = role not in ("body", "condition") or trips is not None
    called += [(name, loop.get(role, 1), known) for name in re.findall(r"[\w.\-]+", names)]
  return called


def _walk(computations: dict[str, Computation], name: str, times: int, exact: bool) -> Iterator[Collective]:
  for collective, called in computations.get(name, ()):
    if collective is not None:
      yield collective._replace(times=times, exact=exact)
    for other, more, known in called:
      yield from _walk(computations, other, times * more, exact and known)
