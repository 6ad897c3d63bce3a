"""What headers and side files tell: names, shapes, dtypes, configs, vocabularies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from merge_jax import storage
from merge_jax.checkpoints import Checkpoint, sidecars
from merge_jax.decoding import decode
from merge_jax.errors import in_library, shown
from merge_jax.operators.planning import merges
from merge_jax.preflight.findings import Finding

VOCABULARIES = (
  "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
  "tiktoken.model", "qwen.tiktoken", "tekken.json",
)  # fmt: skip
"""Where tokenizers have their tokens; what comes first counts."""
READ = ("tokenizer.json", "vocab.json")
"""Those of which a difference in bytes may be none in tokens."""
Models = Sequence[tuple[str, Checkpoint]]
"""Labels and open checkpoints: the pool, and the base."""
Config = Mapping[str, Any]


def tensors(models: Models) -> Iterator[Finding]:
  """The same names and shapes everywhere; dtypes that merge."""
  for label, checkpoint in models:
    if not checkpoint.specs:
      yield Finding("error", "names", f"{label} has no tensors")
      return
    for name, spec in checkpoint.specs.items():
      try:
        merges(spec.dtype, f"tensor {name!r} of {label}")
      except ValueError as error:
        yield Finding("error", "dtypes", str(error))
        return
  (first_label, first), errors = models[0], 0
  for label, other in models[1:]:
    for name in sorted(first.specs.keys() ^ other.specs.keys())[:3]:
      where = label if name in first.specs else first_label
      errors += 1
      yield Finding("error", "names", f"tensor {name!r} is missing in {where}")
    for name in sorted(first.specs.keys() & other.specs.keys()):
      a, b = first.specs[name], other.specs[name]
      if a.shape != b.shape:
        errors += 1
        yield Finding(
          "error", "shapes", f"tensor {name!r} is {a.shape} in {first_label}, {b.shape} in {label}"
        )
        break
      if merges(a.dtype, name) != merges(b.dtype, name):
        errors += 1
        detail = (
          f"tensor {name!r} is {a.dtype} in {first_label}, {b.dtype} in {label}: only one of them merges"
        )
        yield Finding("error", "dtypes", detail)
        break
  if not errors:
    yield Finding("ok", "names and shapes", f"{len(first.specs)} tensors, {first.parameters:,} parameters")
  dtypes = [(label, sorted({str(s.dtype) for s in c.specs.values()})) for label, c in models]
  if any(names != dtypes[0][1] for _, names in dtypes):
    told = "; ".join(f"{label}: {', '.join(names)}" for label, names in dtypes)
    yield Finding("warning", "dtypes", f"differ ({told}); the result has those of {first_label}")
  else:
    yield Finding("ok", "dtypes", ", ".join(dtypes[0][1]))
  formats = {c.format for _, c in models}
  if len(formats) > 1:
    yield Finding("warning", "formats", f"{sorted(formats)}; the result is {first.format}")


def configs(pool: Models) -> Iterator[Finding]:
  """Configs that compute the same: one of the pool's is used for all merges."""
  have = [(label, c.config) for label, c in pool if c.config is not None]
  if len(have) < 2:
    return
  first_label, first = have[0]
  found = [line for label, other in have[1:] for line in _differences(first, other, first_label, label)]
  yield from (Finding("error", "configs", line) for line in found)
  if not found:
    yield Finding("ok", "configs", f"{len(have)} that compute the same")


def _differences(a: Config, b: Config, where_a: str, where_b: str) -> list[str]:
  """Field by field; as they are where no built-in model reads them."""
  if a == b:
    return []
  from merge_jax.models import differences  # slow to import, and seldom needed

  try:
    return differences(a, b, where_a, where_b)
  except ValueError:
    names = sorted(name for name in a.keys() | b.keys() if name not in sidecars.WITHOUT_EFFECT)
    pairs = [(name, a.get(name), b.get(name)) for name in names]
    return [f"{name} is {shown(x)} in {where_a}, {shown(y)} in {where_b}" for name, x, y in pairs if x != y]


def vocabulary(models: Models) -> Iterator[Finding]:
  """The same tokens with the same numbers, as many as the embedding has rows."""
  found = list(tokens(models))
  for label, c in models:
    size = (c.config or {}).get("vocab_size")
    rows = c.specs.get("model.embed_tokens.weight")
    if size is not None and rows is not None and rows.shape[:1] != (size,):
      detail = f"{label}: config says {size}, the embedding has shape {rows.shape}"
      found.append(Finding("error", "vocabulary", detail))
  if not found:
    count = len(_kinds(models))
    same = f"the same in {count} tokenizers" if count else "no tokenizer beside the tensors: not compared"
    found.append(Finding("ok", "vocabulary", same))
  yield from found


def tokens(models: Models) -> Iterator[Finding]:
  """Where the tokenizers beside the tensors differ, or cannot be compared."""
  kinds = _kinds(models)
  for kind in dict.fromkeys(kinds.values()):
    texts = [(label, storage.read_bytes(c.path / kind)) for label, c in models if kinds.get(label) == kind]
    first_label, first = texts[0]
    for label, text in texts[1:]:
      if text == first:
        continue
      if kind not in READ:
        yield Finding("error", "vocabulary", f"{label} and {first_label} differ in {kind}")
        continue
      try:
        a, b = (_tokens(kind, *one) for one in ((first, first_label), (text, label)))
      except ValueError as error:
        yield Finding("error", "vocabulary", str(error))
        return
      if a != b:
        token = min(a.items() ^ b.items())[0]
        yield Finding("error", "vocabulary", f"{label} and {first_label} differ, first in token {token!r}")
  if len(set(kinds.values())) > 1:
    said = ", ".join(f"{label} has {kind}" for label, kind in kinds.items())
    yield Finding("warning", "vocabulary", f"tokenizers of several kinds are not compared: {said}")


def _kinds(models: Models) -> dict[str, str]:
  """The file that each model's tokenizer is read from, of those that have one."""
  found = {label: [name for name in VOCABULARIES if (c.path / name).exists()] for label, c in models}
  return {label: names[0] for label, names in found.items() if names}


def _tokens(kind: str, content: bytes, label: str) -> dict[str, int]:
  if kind == "vocab.json":
    return decode(content, dict[str, int], f"{kind} of {label}")
  from tokenizers import Tokenizer

  with in_library(f"{kind} of {label} cannot be read"):
    return Tokenizer.from_buffer(content).get_vocab()
