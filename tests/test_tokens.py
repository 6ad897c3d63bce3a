"""Tokenizers beside a checkpoint, and rows that cannot be scored."""

import dataclasses
import json
import os

import pytest
from tokenizers import normalizers, processors

from merge_jax import evals
from merge_jax.evals.options import Options
from merge_jax.training import puzzles

TOKENS = evals.Tokens(puzzles.tokenizer(), 1)


def test_special_tokens_go_on_the_prompt():
  tokenizer = puzzles.tokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<|pad|> $A", special_tokens=[("<|pad|>", 0)]
  )
  tokens = evals.Tokens(tokenizer, 1)
  assert tokens.prompts(["a"])[0][0] == 0
  assert tokens.targets(["a"]) == [[tokenizer.token_to_id("a"), 1]]
  assert tokens.targets(["a"], append_eos=False) == [[tokenizer.token_to_id("a")]]


def test_an_empty_prompt_has_no_end_either():
  tokenizer = puzzles.tokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<|pad|> $A <|end|>", special_tokens=[("<|pad|>", 0), ("<|end|>", 1)]
  )
  assert evals.Tokens(tokenizer, 1).prompts(["", "a"]) == [[0], [0, tokenizer.token_to_id("a")]]


def test_a_prompt_goes_on_where_the_tokenizer_ends_every_text():
  tokenizer = puzzles.tokenizer()
  a, bare = tokenizer.token_to_id("a"), evals.Tokens(tokenizer, 1).prompts(["a<|end|>"])
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 1)]
  )
  assert evals.Tokens(tokenizer, 1).prompts(["a", "a<|end|>", ""]) == [[1, a], [1, *bare[0]], [1, 1]]
  assert bare == [[a, 1]] and evals.Tokens(tokenizer, None).prompts(["a"]) == [[1, a, 1]]


def dropping():
  """Tokens whose tokenizer drops every letter q."""
  tokenizer = puzzles.tokenizer()
  tokenizer.normalizer = normalizers.Replace("q", "")
  return evals.Tokens(tokenizer, 1)


@pytest.mark.parametrize(
  ("tokens", "prompt", "target", "message"),
  [
    (TOKENS, "", "a", r"example 2 \(''\): a prompt without tokens"),
    (dropping(), "x", "qq", r"example 2 \('x'\): a target 'qq' without tokens"),
    (TOKENS, "a" * 70, "a", r"example 2 \('aa.*\.\.\.\) has 72 tokens with its target; the model takes 64"),
    (TOKENS, "x~", "a", r"example 2 \('x~'\): The tokenizer gives id 96; the model's vocabulary has 96"),
    (TOKENS, "\ud800", "a", r"text '\\ud800' has a lone surrogate"),
    (TOKENS, "x", "\ud800", r"text '\\ud800' has a lone surrogate"),
  ],
)
@pytest.mark.parametrize("choices", [1, 2])
def test_rows_that_cannot_be_scored(tokens, prompt, target, message, choices):
  good = evals.Example("fine", ("a", "b")[:choices])
  bad = evals.Example(prompt, ("a", target)[-choices:])
  batch = [evals.Task("s", "loss", (good,)), evals.Task("t", "loss", (good, bad))]
  with pytest.raises(ValueError, match=message):
    evals.encode(batch, tokens, max_length=64, vocabulary=96)


def test_an_end_of_text_id_outside_the_vocabulary():
  tokens = evals.Tokens(puzzles.tokenizer(), 97, "m/tokenizer.json")
  task = evals.Task("t", "loss", (evals.Example("x", ("a",)),))
  assert len(evals.encode([task], tokens, append_eos=False, vocabulary=97).ids) == 1
  with pytest.raises(ValueError, match=r"'t', example 1 \('x'\): m/tokenizer.json gives id 97; .* has 97"):
    evals.encode([task], tokens, vocabulary=97)


def test_tokenizers_are_found_beside_the_model(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no tokenizer.json"):
    evals.Tokens.from_folder(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="is not a tokenizer"):
    evals.Tokens.from_folder(tmp_path)
  (tmp_path / "tokenizer.json").write_text(puzzles.tokenizer().to_str())
  assert evals.Tokens.from_folder(tmp_path).eos is None
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
  assert evals.Tokens.from_folder(tmp_path).eos == 1
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
  assert evals.Tokens.from_folder(tmp_path).eos == 5


def test_of_several_ends_targets_have_the_tokenizers_and_answers_their_templates(tmp_path):
  """Llama 3 Instruct calls the end of a turn its end of text, Gemma's chat models do not."""
  tokenizer = puzzles.tokenizer()
  tokenizer.add_special_tokens(["<turn>"])
  turn, text = tokenizer.get_vocab_size() - 1, evals.Task("t", "loss", (evals.Example("x", ("a",)),))
  talk = dataclasses.replace(text, options=Options(chat=True))
  (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1, turn]}))

  def ends(eos_token, template):
    settings = {"eos_token": eos_token, "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokens = evals.Tokens.from_folder(tmp_path)
    assert sorted(tokens.ends) == [1, 5, turn]
    return [int(evals.encode([task], tokens).ids[0][-1]) for task in (text, talk)]

  turns = "{% for m in messages %}{{ m.content }}<turn>\n{% endfor %}{{ 'A:' if add_generation_prompt }}"
  assert ends("<turn>", turns) == [turn, turn]
  assert ends("<|end|>", turns) == [1, turn]
  assert ends("~", turns) == [5, turn]  # which no list has
  assert ends("<|end|>", turns.replace("<turn>", "~")) == [1, 1]  # that does not end texts
  assert ends("<|end|>", "{{ raise_exception('no') if messages|length > 1 }}?") == [1, 1]


def test_special_tokens_of_templates_may_lie_in_their_map(folder):
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"chat_template": "{{ bos_token }}{{ eos_token }}"})
  )
  (folder / "special_tokens_map.json").write_text(
    json.dumps({"bos_token": {"content": "^"}, "eos_token": "$"})
  )
  tokens = evals.Tokens.from_folder(folder)
  assert tokens.chat([("user", "x")]) == "^$" and tokens.first == tokens.tokenizer.token_to_id("^")


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{% for a in b %}" * 25 + "{% endfor %}" * 25, "nested too deeply"),
    ("{{ 'a' * 100000000000000 }}", "The chat template of .* cannot write"),
    ("{{ messages[0].content.index('zzz') }}", "The chat template of .* cannot write .*substring not found"),
    ("{{ messages[0].content.encode('ascii', 'x') }}", "cannot write"),
  ],
)
def test_templates_that_fail_are_one_sentence(folder, template, message):
  (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
  with pytest.raises(ValueError, match=message):
    evals.Tokens.from_folder(folder).chat([("user", "é")])


def test_templates_are_found_among_odd_entries_and_write_json_as_transformers_does(folder):
  entries = [{"name": ["a"], "template": "x"}, {"name": "default", "template": TO_JSON}]
  (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
  assert evals.Tokens.from_folder(folder).chat([("user", "é")]) == '{"content":"é","role":"user"}'


TO_JSON = "{{ messages[0]|tojson(ensure_ascii=False, separators=(',', ':'), sort_keys=True) }}"


def test_a_config_may_hold_infinity(folder):
  (folder / "config.json").write_text('{"eos_token_id": 5, "time_step_limit": [0.0, Infinity]}')
  assert evals.Tokens.from_folder(folder).eos == 5


@pytest.mark.parametrize("eos", [-1, 2**31, "1", True, 1.0, [1, 2]])
def test_an_end_of_text_id_is_an_id(eos):
  with pytest.raises(ValueError, match=r"^The tokenizer: eos is .*; expected a whole number"):
    evals.Tokens(puzzles.tokenizer(), eos)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "tokenizer.json").write_text(puzzles.tokenizer().to_str())
  return tmp_path


MODEL_CONFIGS = [
  (b"[]", r"the content is \[\]; expected an object"), (b"{", "not valid JSON"), (b"\xff", "not valid JSON"),
  (b"", "not valid JSON"),
  (b'{"eos_token_id": "1"}', "eos_token_id is '1'; expected a whole number or a list"),
  (b'{"eos_token_id": true}', "eos_token_id is True"), (b'{"eos_token_id": 1.0}', "eos_token_id is 1.0"),
  (b'{"eos_token_id": ["1"]}', r"eos_token_id\[0\] is '1'"), (b'{"eos_token_id": -1}', "is -1; .* >= 0"),
  (b'{"eos_token_id": 97}', "eos_token_id is 97; tokenizer.json has no such token"),
  (b'{"eos_token_id": 1' + b"0" * 30 + b"}", "expected a whole number <= 2147483647"),
]  # fmt: skip
TOKENIZER_CONFIGS = [
  (b"[]", "expected an object"), (b"{", "not valid JSON"),
  (b'{"eos_token": 1}', "eos_token is 1; expected a string"),
  (b'{"eos_token": {}}', "field 'content' of eos_token is missing"),
  (b'{"eos_token": {"content": 1}}', "eos_token.content is 1; expected a string"),
  (b'{"eos_token": "</s>"}', "eos_token is '</s>'; tokenizer.json has no such token"),
]  # fmt: skip


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    *[(name, *row) for name in ("generation_config.json", "config.json") for row in MODEL_CONFIGS],
    *[("tokenizer_config.json", *row) for row in TOKENIZER_CONFIGS],
  ],
)
def test_damaged_configs_are_named(folder, name, content, message):
  (folder / name).write_bytes(content)
  with pytest.raises(ValueError, match=f"{name}: .*{message}"):
    evals.Tokens.from_folder(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "tokenizer_config.json"])
def test_configs_are_regular_files(folder, name):
  os.mkfifo(folder / name)
  with pytest.raises(ValueError, match=f"{name}.* regular file"):
    evals.Tokens.from_folder(folder)


def test_a_tokenizer_is_a_regular_file(tmp_path):
  os.mkfifo(tmp_path / "tokenizer.json")
  with pytest.raises(FileNotFoundError, match=r"no tokenizer.json"):
    evals.Tokens.from_folder(tmp_path)


class PanicException(BaseException):
  """What the library's panics are called; they derive from BaseException alone."""


@pytest.mark.parametrize("error", [PanicException("index out of bounds"), Exception("bare\nand long" * 99)])
def test_what_the_library_raises_is_one_sentence(folder, monkeypatch, error):
  class Broken:
    @staticmethod
    def from_buffer(path):
      raise error

    def encode_batch(self, texts, add_special_tokens):
      raise error

  with pytest.raises(ValueError, match=r"^The tokenizer failed: ") as caught:
    evals.Tokens(Broken(), None).prompts(["a"])
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
  monkeypatch.setattr("merge_jax.evals.tokens.Tokenizer", Broken)
  with pytest.raises(ValueError, match=r"tokenizer.json is not a tokenizer: "):
    evals.Tokens.from_folder(folder)


def test_a_stop_is_not_an_error_of_the_library(folder, monkeypatch):
  class Stopped:
    @staticmethod
    def from_buffer(path):
      raise KeyboardInterrupt

  monkeypatch.setattr("merge_jax.evals.tokens.Tokenizer", Stopped)
  with pytest.raises(KeyboardInterrupt):
    evals.Tokens.from_folder(folder)
