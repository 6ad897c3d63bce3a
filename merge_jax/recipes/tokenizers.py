"""The tokenizer of a merge, and where each of its tokens' embeddings comes from.

Models with different vocabularies cannot be merged row by row. A plan chooses one tokenizer, finds each of
its tokens in every model by its text, and says what stands in where a model has no such token.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from tokenizers import AddedToken, Tokenizer

from merge_jax.checkpoints import Checkpoint, sidecars
from merge_jax.decoding import convert
from merge_jax.errors import shown, unknown
from merge_jax.recipes import tokenizer_files

Row = tuple[str, int]
"""A model's label, and a row of its embeddings."""


class TokenizerPlan(NamedTuple):
  """What follows from the choice of a tokenizer; nothing in it is as large as an embedding.

  Attributes:
    label: the model whose tokenizer it is, or that it extends; the source's name if that is no model.
    ids: of every token of the result, by its text.
    rows: of the result's embeddings, padding included.
    rows_of: for every model, `[rows]` int64: the row in its own embeddings, -1 where it has none.
    fill: for ids that some model lacks, the rows whose mean stands in; no rows: zeros.
    padding: `[rows]` bool: no token's, or one that no model has; gets the mean of a model's other rows.
    files: the files beside the tensors that belong to a tokenizer, by name; a result has no others of them.
    config: what changes in `config.json`; see `configured`.
    notes: what was supposed, for people.
  """

  label: str
  ids: Mapping[str, int]
  rows: int
  rows_of: Mapping[str, np.ndarray]
  fill: Mapping[int, tuple[Row, ...]]
  padding: np.ndarray
  files: Mapping[str, bytes]
  config: Mapping[str, Any]
  notes: tuple[str, ...] = ()


class _ModelToken(msgspec.Struct, tag_field="kind", tag="model_token", forbid_unknown_fields=True):
  model: str
  token: str | None = None
  token_id: int | None = None


class _Zero(msgspec.Struct, tag_field="kind", tag="zero", forbid_unknown_fields=True):
  pass


class _Override(msgspec.Struct, forbid_unknown_fields=True):
  source: str | _ModelToken | _Zero | None = None
  force: bool = False


_GAP = 1024
"""Ids beyond those of a model's tokens and rows that a tokenizer may have reserved."""


class _Vocabulary(NamedTuple):
  ids: Mapping[str, int]
  added: Mapping[str, AddedToken]
  rows: int
  """Of the model's embeddings; a token beyond them has no embedding."""

  def row(self, text: str) -> int:
    """The token's row, or -1."""
    i = self.ids.get(text, -1)
    return i if i < self.rows else -1


def plan(
  source: str,
  tokens: Mapping[str, Any],
  pad_to_multiple_of: int | None,
  models: Sequence[tuple[str, Checkpoint]],
  base_label: str | None,
  folder: Path | None = None,
  *,
  zeros: bool = False,
) -> TokenizerPlan:
  """Chooses the tokenizer of a merge and maps every model's embeddings to it.

  A token that a model lacks gets the base's row, else that of its only owner, else the mean of its owners;
  one that all lack what padding gets, the mean of a model's other rows.
  The union is the base's (or first model's) tokenizer, with what it lacks added behind: the others'
  vocabularies in their order, then their added tokens. Padding of the models' own embeddings is dropped.

  Args:
    source: "base" (the first model where there is none), "union" or a model's label.
    tokens: exceptions by text, `{source, force}`: `source` is a label, `{kind: model_token, model, token}`
      (or `token_id`) or `{kind: zero}`, for the models that lack the token, or with `force` for all. A token
      that the tokenizer lacks is added to it.
    pad_to_multiple_of: of the number of rows; None for no padding.
    models: label and checkpoint of every model, the base included.
    base_label: of the base, or None.
    folder: of the source, where it is none of the models and gives nothing but its tokenizer.
    zeros: whether a token that no model has gets zeros, as in mergekit, not what padding gets.

  Raises:
    ValueError: no or a damaged `tokenizer.json` (a model without any tokenizer is supposed to have the
      tokens of the base, or first model), an unknown source, or a token that its source lacks.
  """
  opened = dict(models)
  label = source if folder is not None else _chosen(source, opened, base_label)
  if pad_to_multiple_of is not None and (type(pad_to_multiple_of) is not int or pad_to_multiple_of < 1):
    raise ValueError(
      f"tokenizer.pad_to_multiple_of is {shown(pad_to_multiple_of)}; expected a whole number >= 1."
    )
  overrides = {text: convert(raw, _Override, f"tokenizer.tokens[{text!r}]") for text, raw in tokens.items()}
  assumed = base_label or next(iter(opened))
  bare = [key for key, one in models if key not in (label, assumed) and not tokenizer_files.there(one)]
  notes = [f"{key} has no tokenizer; its tokens are supposed to be those of {assumed}" for key in bare]
  read = {key: tokenizer_files.read(opened[assumed] if key in bare else one) for key, one in models}
  vocabularies = {key: _vocabulary(read[key], opened[key]) for key in opened}
  tokenizer = read[label] if folder is None else tokenizer_files.read(folder)
  _refuse_damaged(label, tokenizer, max(one.rows for one in vocabularies.values()))
  others = [one for key, one in vocabularies.items() if key != label] if source == "union" else []
  new = _missing(tokenizer.get_vocab(), others, overrides)
  tokenizer.add_tokens(new)
  ids = tokenizer.get_vocab()
  size = max(ids.values(), default=-1) + 1
  multiple = pad_to_multiple_of or 1
  rows = -(-size // multiple) * multiple
  rows_of = {key: np.full(rows, -1, np.int64) for key in vocabularies}
  fill: dict[int, tuple[Row, ...]] = {}
  rowless = 0
  for text, i in ids.items():
    owned = {key: row for key, one in vocabularies.items() if (row := one.row(text)) >= 0}
    rowless += not owned
    override = overrides.get(text, _Override())
    for key, row in owned.items():
      rows_of[key][i] = -1 if override.force else row
    stand_in = _stand_in(text, override, owned, vocabularies, base_label)
    if stand_in is None and zeros:
      stand_in = ()
    if stand_in is not None and (override.force or len(owned) < len(vocabularies)):
      fill[i] = stand_in
  padding = np.array(
    [all(one[i] < 0 for one in rows_of.values()) and i not in fill for i in range(rows)], bool
  )
  if rowless:
    notes.append(f"tokens of the tokenizer without a row in any model's embeddings: {rowless}")
  config = dict((opened[label].config if folder is None else sidecars.read_config(folder)) or {})
  said = config | dict(text_config(config))
  changes = {"vocab_size": rows} | {key: value for key, value in said.items() if key.endswith("_token_id")}
  files = tokenizer_files.of(opened[label] if folder is None else folder)
  if new:
    where = str(opened[label].path if folder is None else folder)
    files = tokenizer_files.extended(files, tokenizer, [token.content for token in new], where)
  return TokenizerPlan(label, ids, rows, rows_of, fill, padding, files, changes, tuple(notes))


def _refuse_damaged(label: str, tokenizer: Tokenizer, rows: int) -> None:
  """Raises ValueError for an id that is not even one of a tokenizer with reserved ids."""
  ids = tokenizer.get_vocab()
  text = max(ids, key=ids.__getitem__, default="")
  if ids and ids[text] >= max(2 * len(ids), rows) + _GAP:
    raise ValueError(
      f"{label}: token {shown(text)} of tokenizer.json has id {ids[text]}, of {len(ids)} tokens; the file is "
      "damaged, copy it again."
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """The part of a config that says the vocabulary's size: all of it, or that of the language model."""
  inner = config.get("text_config")
  return inner if "vocab_size" not in config and isinstance(inner, Mapping) else config


def vocabulary_size(checkpoint: Checkpoint) -> int:
  """Rows of a model's embeddings, as its config says.

  Raises:
    ValueError: it does not.
  """
  rows = text_config(checkpoint.config or {}).get("vocab_size")
  if type(rows) is not int or rows < 1:
    raise ValueError(
      f"{checkpoint.path}: vocab_size of config.json is {shown(rows)}; choosing a tokenizer "
      "needs it, a whole number >= 1."
    )
  return rows


def configured(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """A config with a plan's changes, in the part that has a vocabulary.

  >>> configured({"text_config": {"vocab_size": 8}}, {"vocab_size": 16, "eos_token_id": 1})
  {'text_config': {'vocab_size': 16, 'eos_token_id': 1}}
  """
  inner = text_config(config)
  outside = {key: value for key, value in changes.items() if key in config and inner is not config}
  changed = dict(inner) | dict(changes)
  return changed if inner is config else dict(config) | outside | {"text_config": changed}


def _chosen(source: str, opened: Mapping[str, Checkpoint], base_label: str | None) -> str:
  label = (base_label or next(iter(opened))) if source in ("base", "union") else source
  if label not in opened:
    raise ValueError(unknown("source of the tokenizer", label, ["base", "union", *opened]))
  return label


def _vocabulary(tokenizer: Tokenizer, checkpoint: Checkpoint) -> _Vocabulary:
  ids = tokenizer.get_vocab()
  added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
  return _Vocabulary(ids, added, vocabulary_size(checkpoint))


def _missing(
  own: Mapping[str, int], others: Sequence[_Vocabulary], named: Mapping[str, Any]
) -> list[AddedToken]:
  """The tokens of others, and named ones, that a tokenizer is to get, in order, each once."""
  ordered = [sorted(one.ids, key=lambda text, one=one: one.ids[text]) for one in others]  # type: ignore[misc]
  plain = [
    text for one, texts in zip(others, ordered, strict=True) for text in texts if text not in one.added
  ]
  added = [text for one, texts in zip(others, ordered, strict=True) for text in texts if text in one.added]
  known: dict[str, AddedToken] = {}
  for one in others:
    known = dict(one.added) | known
  wanted = dict.fromkeys(text for text in (*plain, *added, *named) if text not in own)
  return [known.get(text) or AddedToken(text, special=False, normalized=True) for text in wanted]


def _stand_in(
  text: str,
  override: _Override,
  owned: Mapping[str, int],
  vocabularies: Mapping[str, _Vocabulary],
  base_label: str | None,
) -> tuple[Row, ...] | None:
  """The rows whose mean stands in for a token; None: nobody has it."""
  wanted = override.source
  if wanted is None:
    if base_label is not None and base_label in owned:
      return ((base_label, owned[base_label]),)
    return tuple(owned.items()) or None
  if isinstance(wanted, _Zero):
    return ()
  where = f"tokenizer.tokens[{text!r}].source"
  named = _ModelToken(wanted, text) if isinstance(wanted, str) else wanted
  if named.model not in vocabularies:
    raise ValueError(unknown("model", named.model, vocabularies, where))
  if (named.token is None) == (named.token_id is None):
    raise ValueError(f"{where}: expected either token or token_id.")
  vocabulary = vocabularies[named.model]
  row = named.token_id if named.token is None else vocabulary.row(named.token)
  if row is None or not 0 <= row < vocabulary.rows:
    token = shown(named.token if row is None or named.token is not None else row)
    raise ValueError(f"{where}: the model {named.model!r} has no token {token}; name one that has it.")
  return ((named.model, row),)
