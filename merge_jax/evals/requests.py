"""What lm-eval asks, in tokens: pairs of texts joined, prompts cut, options of generated texts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from merge_jax.errors import shown
from merge_jax.evals.tokens import Tokens

MOST = 64
"""Most continuations of one context that are read in one row."""


def encode(tokens: Tokens, text: str, special: bool | None = None) -> list[int]:
  """Token ids, with the tokenizer's special tokens unless the text begins with them or `special` says so."""
  if special is None:
    first = None if tokens.first is None else tokens.tokenizer.id_to_token(tokens.first)
    special = not (first and text.startswith(first))
  return tokens.prompts([text], special)[0]


def pair(tokens: Tokens, context: str, continuation: str) -> tuple[list[int], list[int]]:
  """Context and continuation, tokenized as one text and parted behind the tokens of the context.

  White space at the end of the context belongs to the continuation. Without a context the continuation
  follows the first token of a text.
  """
  if not context:
    ids, first = encode(tokens, continuation, False), tokens.first if tokens.first is not None else tokens.eos
    if first is None:
      raise ValueError(f"{tokens.source} has no token that a text without context could begin with.")
    return (ids[:1], ids[1:]) if ids[:1] == [first] else ([first], ids)
  kept = context.rstrip()
  before = encode(tokens, kept)
  return before, encode(tokens, kept + context[len(kept) :] + continuation)[len(before) :]


def row(context: list[int], continuation: list[int], max_length: int) -> np.ndarray:
  """Both as one row, cut from the left to what a model can read.

  Raises:
    ValueError: nothing precedes the continuation, or it is empty.
  """
  if not context or not continuation or len(continuation) > max_length:
    raise ValueError(
      f"A continuation of {len(continuation)} tokens after {len(context)} cannot be scored; expected 1 to "
      f"{max_length} after at least 1."
    )
  return np.asarray((context + continuation)[-(max_length + 1) :], np.int32)


def limits(options: Mapping[str, Any], most: int) -> tuple[int, tuple[str, ...]]:
  """Most tokens of a text, and the strings that end it.

  Raises:
    ValueError: options that ask for sampling or beams.

  >>> limits({"until": ["\\n"], "max_gen_toks": 8, "do_sample": False, "temperature": 0.7}, 256)
  (8, ('\\n',))
  """
  sampled = options.get("do_sample", bool(options.get("temperature")))
  if sampled or options.get("num_beams", 1) != 1:
    raise ValueError(f"Texts are generated greedily; got {shown(dict(options))}; set do_sample: false.")
  names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
  limit = next((int(options[name]) for name in names if options.get(name) is not None), most)
  until = options.get("until") or []
  return limit, tuple(one for one in ([until] if isinstance(until, str) else until) if one)
