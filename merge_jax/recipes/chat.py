"""Chat templates: of the inputs, of well-known formats, or the user's own."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

from merge_jax.checkpoints import Checkpoint, sidecars
from merge_jax.errors import unknown
from merge_jax.evals import chat
from merge_jax.recipes import tokenizer_files

TEMPLATES = {
  "alpaca": (
    "{% for message in messages %}"
    "{% set titles = {'user': '### Instruction:\n', 'assistant': '### Response:\n'} %}"
    "{{ titles.get(message['role'], '') + message['content'] | trim }}"
    "{{ (eos_token if message['role'] == 'assistant' else '') + '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
  ),
  "chatml": (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
  ),
  "exaone": (
    "{% if messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '[|' + message['role'] + '|]' + message['content'] }}"
    "{{ '\n' if message['role'] == 'user' else '[|endofturn|]\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
  ),
  "llama3": (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
  ),
  "mistral": (
    "{{ bos_token }}"
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ ' [INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
  ),
}
"""By name, written from what the formats' authors document: Stanford Alpaca, ChatML (OpenAI), and the model
cards of EXAONE, Llama 3 and Mistral Instruct."""


def choose(choice: str, models: Sequence[Checkpoint]) -> str | None:
  """The chat template of a merge.

  Args:
    choice: "auto" for the most common one of the inputs (the first of equally common ones), a name in
      `TEMPLATES`, or a template.
    models: the inputs, the leader first.

  Returns:
    A Jinja template; None where no input has one.

  Raises:
    ValueError: an unknown name, or a text that Jinja cannot compile.

  >>> choose("chatlm", [])
  Traceback (most recent call last):
  ValueError: unknown chat template 'chatlm'; did you mean 'chatml'? Known: alpaca, auto, chatml, ...
  """
  if choice == "auto":
    found = [template for one in models if (template := _of(one)) is not None]
    return max(found, key=collections.Counter(found).__getitem__, default=None)
  if choice in TEMPLATES:
    return TEMPLATES[choice]
  if "{" not in choice:
    raise ValueError(unknown("chat template", choice, ["auto", *TEMPLATES]))
  chat.Chat(choice, {}, "chat_template")
  return choice


def _of(model: Checkpoint | Path) -> str | None:
  """The chat template of a model, which compiles; None if it has none."""
  folder = model if isinstance(model, Path) else model.path
  try:
    template = chat.of(tokenizer_files.of(model))
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from None
  if template is not None:
    chat.Chat(template, {}, f"{folder}: the chat template")
  return template


def put(template: str, files: Mapping[str, bytes], where: str) -> dict[str, bytes]:
  """A tokenizer's files, of the folder `where`, with another chat template, in one place alone."""
  others = ("chat_template.json", f"{sidecars.TEMPLATES}/")
  result = {name: content for name, content in files.items() if not name.startswith(others)}
  settings = tokenizer_files.config(files, where)
  if settings.pop("chat_template", None) is not None:
    result["tokenizer_config.json"] = tokenizer_files.as_json(settings)
  return result | {chat.FILE: template.encode()}
