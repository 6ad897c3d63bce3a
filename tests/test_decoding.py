"""What is read is of its type, or one sentence says where it is not."""

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from merge_jax import decoding


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  budget: Annotated[int, Meta(ge=1)] = 200
  sigma: Annotated[float, Meta(ge=0)] = 0.0
  fractions: tuple[float, float] = (0.5, 0.5)
  dtype: Literal["float32", "bfloat16"] = "float32"


class Zero(msgspec.Struct, tag_field="kind", tag="zero", forbid_unknown_fields=True):
  pass


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  name: str
  search: Inner = Inner()
  scores: dict[str, float | None] = {}
  source: str | Zero = ""
  other: Inner | None = None


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ([], r"^f: the content is \[\]; expected an object\.$"),
    ({}, r"^f: the field 'name' is missing\.$"),
    ({"name": 1}, r"^f: name is 1; expected a string\.$"),
    (
      {"name": "x", "serch": {}},
      r"^f: unknown field 'serch'; did you mean 'search'\? Known: name, other, scores, search, source",
    ),
    (
      {"name": "x", "search": {"bugdet": 1}},
      r"^f: unknown field in search 'bugdet'; did you mean 'budget'\?",
    ),
    ({"name": "x", "other": {"bugdet": 1}}, r"^f: unknown field in other 'bugdet'; did you mean 'budget'\?"),
    ({"name": "x", "search": {"budget": 0}}, r"^f: search.budget is 0; expected a whole number >= 1\.$"),
    ({"name": "x", "search": {"budget": True}}, r"^f: search.budget is True; expected a whole number"),
    ({"name": "x", "search": {"budget": 2.5}}, r"^f: search.budget is 2.5; expected a whole number"),
    ({"name": "x", "search": {"sigma": float("nan")}}, r"^f: search.sigma is nan; expected a number >= 0"),
    (
      {"name": "x", "search": {"sigma": float("inf")}},
      r"^f: search.sigma is inf; expected a finite number\.$",
    ),
    (
      {"name": "x", "search": {"dtype": "float"}},
      r"^f: unknown search.dtype 'float'; did you mean 'float32'\?",
    ),
    (
      {"name": "x", "search": {"fractions": [1]}},
      r"^f: search.fractions is \[1\]; expected a list of length 2",
    ),
    (
      {"name": "x", "search": {"fractions": [1, "b"]}},
      r"^f: search.fractions\[1\] is 'b'; expected a number\.$",
    ),
    ({"name": "x", "scores": {0.5: 1}}, r"^f: a key of scores is 0.5; expected a string in quotes"),
    ({1: "x"}, r"^f: a key of the content is 1; expected a string in quotes"),
    ({"name": "x", "source": {"kind": "zero", "y": 1}}, r"^f: unknown field in source 'y'; Known: kind\.$"),
    ({"name": "x", "scores": {"a": "b"}}, r"^f: scores\[...\] is {'a': 'b'}; expected a number or null\.$"),
  ],
)
def test_plain_data(value, message):
  with pytest.raises(ValueError, match=message):
    decoding.convert(value, Outer, "f")


def test_values_come_through():
  made = decoding.convert({"name": "x", "search": {"budget": 3, "fractions": [1, 2]}}, Outer, "f")
  assert made == Outer("x", Inner(3, 0.0, (1.0, 2.0)))


@pytest.mark.parametrize(
  "text",
  [b"", b"{", b"\xff", b'{"name": NaN}', b"[" * 100_000, b'{"name": "\\ud800"}', b'{"scores": {"a": 1e999}}'],
)
def test_damaged_json(text):
  with pytest.raises(ValueError, match=r"^f: .*\.$"):
    decoding.decode(text, Outer, "f")
  with pytest.raises(ValueError, match=r"^f: .*\.$"):
    decoding.decode(b"[" * 100_000, list, "f")


def test_a_byte_order_mark_is_allowed():
  assert decoding.decode(b'\xef\xbb\xbf{"name": "x"}', Outer, "f") == Outer("x")
