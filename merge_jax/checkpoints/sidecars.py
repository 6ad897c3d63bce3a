"""The files beside the tensors: config, tokenizer, chat template."""

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from merge_jax import storage
from merge_jax.errors import shown

SIDECARS = (
  "config.json", "generation_config.json", "*token*.json", "vocab.*", "merges.txt", "chat_template.*",
  "*.model", "*.tiktoken", "tekken.json", "*.jinja", "*processor*.json", "normalizer.json", "*.py",
  "training.json",
)  # fmt: skip
"""Patterns of the files beside the tensors that a merged checkpoint carries over, where they are: configs,
tokenizers, processors, and the code that some configs name, which is copied and never run."""
WITHOUT_EFFECT = frozenset((
  "architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward",
  "dtype", "eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "is_llama_config",
  "label2id", "layer_types", "max_window_layers", "mlp_dropout", "name_or_path",
  "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "resid_pdrop",
  "embd_pdrop", "return_dict", "sep_token_id", "cls_token_id", "decoder_start_token_id",
  "sliding_window", "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript",
  "transformers_version", "transformers.js_config", "unk_token_id", "use_cache", "use_sliding_window",
  "model_type", "license", "cache_implementation", "model_max_length", "sliding_window_size",
  "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "use_parallel_embedding",
  # of training tools
  "attn_implementation", "finetuning_task", "max_sequence_length", "neftune_noise_alpha", "unsloth_fixed",
  "unsloth_version",
  # of generation, which old exports write here
  "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
  "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
  "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
  "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
  "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
  "temperature", "top_k", "top_p", "typical_p",
))  # fmt: skip
"""Fields of `config.json` that do not change what the forward pass computes, unless a family reads them."""
TEMPLATES = "additional_chat_templates"
"""The folder that holds the chat templates beside the default one, for tools and documents."""


def sidecars(folder: Path) -> tuple[Path, ...]:
  """The side files that there are, by name, those of the folder `TEMPLATES` last.

  Raises:
    FileNotFoundError: a link to nothing.
    ValueError: one that is not a regular file.
  """
  every = (path for path in sorted(folder.iterdir()) if not path.is_dir())
  there = tuple(path for path in every if any(fnmatch.fnmatchcase(path.name, p) for p in SIDECARS))
  there += templates(folder)
  for path in there:
    storage.refuse_special(path)
  return there


def templates(folder: Path) -> tuple[Path, ...]:
  """The chat templates beside the default one, by name."""
  place = folder / TEMPLATES
  return tuple(sorted(place.glob("*.jinja"))) if place.is_dir() else ()


def copy(source: Path, target: Path) -> None:
  """Copies the side files that there are."""
  for path in sidecars(source):
    place = target / path.relative_to(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    storage.copy_file(path, place)


def read_config(folder: Path) -> dict[str, Any] | None:
  """`config.json`, or None if there is none; ValueError if it is not a JSON object."""
  path = folder / "config.json"
  return read_object(path) if storage.lexists(path) else None


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
  """Writes `config.json`, whole or not at all; Infinity is as transformers has it (Mamba 2)."""
  storage.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object in a file; ValueError if it holds another thing."""
  text = storage.read_bytes(path).removeprefix(b"\xef\xbb\xbf")
  try:
    config = json.loads(text)  # as transformers reads it: some configs hold Infinity
  except (ValueError, RecursionError) as error:
    reason = "nested too deeply" if isinstance(error, RecursionError) else error
    raise ValueError(f"{path}: not valid JSON ({reason}).") from None
  if not isinstance(config, dict):
    raise ValueError(f"{path}: the content is {shown(config)}; expected an object.")
  return config


TIED = ("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2")
"""Kinds of models that are tied unless their config says otherwise: transformers leaves out a default."""


EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight")
"""Where what a head may be tied to is stored."""


def tied(config: Mapping[str, Any] | None, names: Iterable[str], where: Path) -> dict[str, str]:
  """Aliases that the config of the folder `where` declares: a head that is the embedding.

  Raises:
    ValueError: `tie_word_embeddings` is neither true nor false.
  """
  config = config or {}
  ties = config.get("tie_word_embeddings", config.get("model_type") in TIED)
  if not isinstance(ties, bool):
    raise ValueError(
      f"{where / 'config.json'}: tie_word_embeddings is {shown(ties)}; expected true or false."
    )
  there = set(names)
  embedding = next((name for name in EMBEDDINGS if name in there), None)
  return {"lm_head.weight": embedding} if ties and embedding and "lm_head.weight" in there else {}


def update_dtype(folder: Path, dtypes: Iterable[np.dtype]) -> None:
  """Makes `config.json` say the dtype of the tensors, if all that are floating have one."""
  config = read_config(folder)
  floating = {str(dtype) for dtype in dtypes if jax.numpy.issubdtype(dtype, np.inexact)}
  if config is None or len(floating) != 1:
    return
  said = config | dict.fromkeys(config.keys() & {"dtype", "torch_dtype"} or {"dtype"}, min(floating))
  if said != config:
    write_config(folder, said)
