"""The tokenizer of a merge: which tokens it has, and where each one's embedding comes from."""

import json
from pathlib import Path

import jinja2
import ml_dtypes
import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer

from merge_jax import checkpoints, recipes
from merge_jax.checkpoints import hub
from merge_jax.evals import chat as templates
from merge_jax.recipes import chat, embeddings, schema, tensors, tokenizer_files, tokenizers, vocabulary

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def word_level(tokens, specials=(), added=()):
  """`tokenizer.json`: words, some of which are special, and special tokens added behind them."""
  special = [{"id": tokens.index(t), "content": t, "special": True} | FLAGS for t in specials]
  special += [{"id": len(tokens) + i, "content": t, "special": True} | FLAGS for i, t in enumerate(added)]
  return {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": tokens[0]},
  }  # fmt: skip


def bpe(words, specials=("<s>",)):
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
  order = [*specials, *"abcdĠ", *words]
  vocabulary = {t: i for i, t in enumerate(order)}
  return word_level(order, specials) | {
    "pre_tokenizer": level, "decoder": level,
    "model": {"type": "BPE", "vocab": vocabulary, "merges": [list(w) for w in words]},
  }  # fmt: skip


def value(label, token):
  """A number for each token of a model; its row is that number, plus 0, 1, 2."""
  return 100.0 * "bxy".index(label) + token


def make(root, label, spec, *, rows=None, dtype=np.float32, head=True, bias=False, config=(), files=()):
  folder = root / label
  vocabulary = Tokenizer.from_str(json.dumps(spec)).get_vocab()
  rows = rows or max(vocabulary.values()) + 1
  matrix = (value(label, np.arange(rows))[:, None] + np.arange(3.0)).astype(dtype)
  made = {"model.embed_tokens.weight": matrix, "model.layers.0.up.weight": np.zeros((rows, 3), dtype)}
  made |= {"lm_head.weight": -matrix} if head else {}
  made |= {"lm_head.bias": matrix[:, 0]} if bias else {}
  checkpoints.write(folder, made)
  texts = {"config.json": {"vocab_size": rows} | dict(config), "tokenizer.json": spec} | dict(files)
  for name, content in texts.items():
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
  return label, checkpoints.open(folder)


WORDS = {
  "b": word_level(["?", "one", "two", "three"], ["?"]),
  "x": word_level(["?", "three", "one", "four"], ["?"], ["<|x|>"]),
  "y": word_level(["one", "?", "five", "four"], ["?"]),
}


def pool(root, labels="bxy", **how):
  return [make(root, label, WORDS[label], **how) for label in labels]


def first(matrix):
  return matrix[:, 0].tolist()


def test_the_union_keeps_the_bases_ids_and_adds_what_it_lacks(tmp_path):
  models = pool(tmp_path, bias=True)
  made = tokenizers.plan("union", {}, None, models, "b")
  assert sorted(made.ids, key=made.ids.get) == ["?", "one", "two", "three", "four", "five", "<|x|>"]
  assert made.rows == 7 and made.config["vocab_size"] == 7 and not made.padding.any()
  views = {label: embeddings.remap(made, label, dict(models)) for label, _ in models}
  expected = {
    # "?", one, two, three, four: the mean of x and y where b lacks it, five: y's alone, <|x|>: x's alone
    "b": [0, 1, 2, 3, (103 + 203) / 2, 202, 104],
    "x": [100, 102, 2, 101, 103, 202, 104],
    "y": [201, 200, 2, 3, 203, 202, 104],
  }
  for label, view in views.items():
    read = view.read("model.embed_tokens.weight")
    assert first(read) == expected[label]
    assert read.dtype == view.specs["model.embed_tokens.weight"].dtype and read.shape == (7, 3)
    np.testing.assert_array_equal(read[:, 2] - read[:, 0], 2)
    np.testing.assert_array_equal(view.read("lm_head.weight"), -read)
    np.testing.assert_array_equal(view.read("lm_head.bias"), read[:, 0])
    assert view.specs["lm_head.bias"].shape == (7,)
    index = (slice(2, 6), slice(1, 2))
    np.testing.assert_array_equal(view.read("model.embed_tokens.weight", index), read[index])
    assert view.read("model.layers.0.up.weight").shape == dict(models)[label].read("lm_head.weight").shape
    assert view.config["vocab_size"] == 7
  reads = {label: one.read("lm_head.bias") for label, one in models}
  assert embeddings.embed_rows(made, "b", reads, slice(3, 6)).tolist() == [3, 153, 202]


@pytest.mark.parametrize(
  "name",
  [
    "cls.predictions.bias", "vocab_projector.bias", "generator_lm_head.bias", "lm_loss.bias",
    "pred_layer.proj.bias", "transformer.tokens_embed.weight", "text_model.embeddings.token_embedding.weight",
    "transformer.word_embedding.weight", "final_logits_bias",
  ],
)  # fmt: skip
def test_tensors_with_an_entry_for_every_token_are_known_in_all_families(tmp_path, name):
  opened, one_row = {}, name == "final_logits_bias"
  for label in "bx":
    count = len(Tokenizer.from_str(json.dumps(WORDS[label])).get_vocab())
    entries = value(label, np.arange(count, dtype=np.float32))
    checkpoints.write(
      tmp_path / label, {name: entries[None] if one_row else entries, "up": np.ones((count, 3))}
    )
    (tmp_path / label / "config.json").write_text(json.dumps({"vocab_size": count}))
    (tmp_path / label / "tokenizer.json").write_text(json.dumps(WORDS[label]))
    opened[label] = checkpoints.open(tmp_path / label)
  plan = tokenizers.plan("union", {}, None, list(opened.items()), "b")
  view = embeddings.remap(plan, "x", opened)
  assert view.specs[name].shape == ((1, 6) if one_row else (6,)) and view.specs["up"].shape == (5, 3)
  expected = [value("x", 0), value("x", 2), value("b", 2), *value("x", np.array([1, 3, 4]))]
  assert view.read(name).ravel().tolist() == expected
  assert view.read(name, (slice(None),) * one_row + (slice(1, 3),)).ravel().tolist() == expected[1:3]


def test_the_files_of_a_union_read_back_with_the_plans_ids(tmp_path):
  added = {"added_tokens_decoder": {"0": {"content": "?"}}, "eos_token": "?"}
  files = {"tokenizer_config.json": added, "vocab.json": "{}", "special_tokens_map.json": "{}"}
  models = [make(tmp_path, "b", WORDS["b"], files=files), *pool(tmp_path, "xy")]
  made = tokenizers.plan("union", {}, None, models, "b")
  again = Tokenizer.from_str(made.files["tokenizer.json"].decode())
  assert again.get_vocab() == made.ids
  assert set(made.files) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
  decoder = json.loads(made.files["tokenizer_config.json"])["added_tokens_decoder"]
  assert {i: t["content"] for i, t in decoder.items()} == {"0": "?", "4": "four", "5": "five", "6": "<|x|>"}
  assert [decoder[i].get("special") for i in "456"] == [False, False, True]
  assert again.encode("one four<|x|>two").tokens == ["one", "four", "<|x|>", "two"]
  same = tokenizers.plan("base", {}, None, models, "b")
  assert same.files["tokenizer.json"] == (tmp_path / "b/tokenizer.json").read_bytes()
  assert "vocab.json" in same.files


def test_byte_level_tokenizers_join(tmp_path):
  specs = {"b": bpe(["ab"]), "x": bpe(["ab", "cd"], ("<s>", "<|t|>"))}
  models = [make(tmp_path, label, spec) for label, spec in specs.items()]
  made = tokenizers.plan("union", {}, None, models, "b")
  assert [made.ids[t] for t in ("<s>", "ab", "cd", "<|t|>")] == [0, 6, 7, 8]
  again = Tokenizer.from_str(made.files["tokenizer.json"].decode())
  assert again.encode("ab cd<|t|>").tokens == ["ab", "Ġ", "cd", "<|t|>"]
  assert again.decode(again.encode("ab cda").ids) == "ab cda"
  view = embeddings.remap(made, "x", dict(models))
  texts = sorted(made.ids, key=made.ids.get)
  own = Tokenizer.from_str(json.dumps(specs["x"])).get_vocab()
  assert first(view.read("lm_head.weight")) == [-value("x", own[t]) for t in texts]


@pytest.mark.parametrize("keys", [(), ("head",)])
def test_a_tied_model_beside_untied_ones_has_rows_of_their_heads(tmp_path, keys):
  config = {"tie_word_embeddings": True}
  models = [make(tmp_path, "x", WORDS["x"], head=False, config=config if keys else ()), *pool(tmp_path, "by")]
  made = tokenizers.plan("union", {}, None, models, "b")
  views = {label: embeddings.remap(made, label, dict(models)) for label in "xby"}
  assert first(views["x"].read("model.embed_tokens.weight")) == [100, 102, 2, 101, 103, 202, 104]
  assert first(views["x"].read("lm_head.weight")) == [100, 102, -2, 101, 103, -202, 104]
  assert first(views["y"].read("lm_head.weight")) == [-201, -200, -2, -3, -203, -202, 104]
  assert first(views["b"].read("lm_head.weight"))[4] == (103 - 203) / 2
  assert views["x"].result_dtype("lm_head.weight") == np.float32
  named = {schema.Model(label): view for label, view in views.items()}
  (names, *_), notes = (found := tensors.of(named))[0].values(), found[1]
  assert names["lm_head.weight"] == "lm_head.weight" and "x ties its head" in notes[0]
  assert tensors.untied(views["y"]) and not tensors.untied(views["x"])


def test_a_head_that_is_stored_twice_is_remapped_as_such(tmp_path):
  _, x = make(tmp_path, "x", WORDS["x"], config={"tie_word_embeddings": True})
  checkpoints.write(tmp_path / "twice", {n: x.read("model.embed_tokens.weight") for n in x.specs}
                    | {"lm_head.weight": x.read("model.embed_tokens.weight")}, like=x)  # fmt: skip
  twice = checkpoints.open(tmp_path / "twice")
  assert twice.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
  models = [("x", twice), *pool(tmp_path, "b")]
  view = embeddings.remap(tokenizers.plan("union", {}, None, models, "b"), "x", dict(models))
  assert first(view.read("lm_head.weight"))[:3] == [100, 102, -2] and not view.aliases


@pytest.mark.parametrize("base", ["b", None])
def test_a_models_tokenizer(tmp_path, base):
  models = pool(tmp_path)
  made = tokenizers.plan("x", {}, None, models, base)
  assert made.ids == {"?": 0, "three": 1, "one": 2, "four": 3, "<|x|>": 4} and made.label == "x"
  b, x, y = (embeddings.remap(made, label, dict(models)) for label in "bxy")
  assert x is dict(models)["x"]  # nothing differs
  assert first(b.read("model.embed_tokens.weight")) == [0, 3, 1, (103 + 203) / 2, 104]
  three = 3 if base else (101 + 3) / 2  # the base's, else the mean of its owners
  assert first(y.read("model.embed_tokens.weight")) == [201, three, 200, 203, 104]


def test_without_a_base_the_first_model_is_it(tmp_path):
  models = pool(tmp_path, "xby")
  for source in ("base", "union"):
    assert tokenizers.plan(source, {}, None, models, None).label == "x"


def test_a_tokenizer_is_found_however_its_folder_is_spelled(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  opened = {schema.Model(label): one for label, one in pool(tmp_path, "by")}
  make(tmp_path, "x", WORDS["x"], config={"eos_token_id": 4})
  (tmp_path / "x/model.safetensors").unlink()  # its tokenizer is all that is read
  (tmp_path / "link").symlink_to("y")

  def resolve(source, folder="."):
    recipe = schema.Recipe("linear", (), "mergekit", tokenizer=schema.Tokenizer(source))
    return vocabulary.resolve(recipe, opened, Path(folder))

  told = resolve("y")
  for source in ("y/", "./y", str(tmp_path / "y"), "link"):
    found = resolve(source)
    assert found.files == told.files and found.source is None
  assert resolve("../y", "x").files == told.files
  alone = resolve("x")
  assert alone.source == Path("x") and alone.files["tokenizer.json"] == Path("x/tokenizer.json").read_bytes()
  assert alone.config == {"vocab_size": 5, "eos_token_id": 4}
  rows = alone.models[schema.Model("y")].read("model.embed_tokens.weight")
  np.testing.assert_allclose(first(rows), [201, 3, 200, 203, np.mean([201, 3, 200, 203])])  # nobody has <|x|>
  recipe = schema.Recipe("linear", (), "mergekit", tokenizer=schema.Tokenizer("x"))
  theirs = vocabulary.resolve(recipe, opened, Path(), mergekit=True)
  rows = theirs.models[schema.Model("y")].read("model.embed_tokens.weight")
  np.testing.assert_allclose(first(rows), [201, 3, 200, 203, 0])
  assert resolve("model:y").files == told.files
  with pytest.raises(ValueError, match="unknown source of the tokenizer 'z'"):
    resolve("z")
  asked = []
  monkeypatch.setattr(hub, "resolve", lambda name: asked.append(name) or Path("x"))
  assert resolve("org/tok@v2").source == Path("x") and asked == ["org/tok@v2"]


def test_a_stages_tokenizer_is_known_before_it_is_written(tmp_path):
  pool(tmp_path, rows=8)
  union = {"tokenizer": {"source": "union"}, "parameters": {"weight": 1}}
  first_, last = ({"merge_method": "linear", "models": [{"model": m} for m in models]} | union
                  for models in (("x", "b"), ("s", "y")))  # fmt: skip
  last["tokenizer"] = {"source": "union", "tokens": {"two": {"source": "s"}}}
  file = tmp_path / "r.yml"
  file.write_text(yaml.safe_dump_all([first_ | {"name": "s"}, last]))
  recipes.check(file)
  recipes.run(file, tmp_path / "out")
  ids = tokenizer_files.read(tmp_path / "out").get_vocab()
  rows = checkpoints.open(tmp_path / "out").read("model.embed_tokens.weight")
  assert first(rows)[ids["two"]] == 2 and {"<|x|>", "five"} <= set(ids)


def test_tokens_of_their_own(tmp_path):
  models = pool(tmp_path)
  token = {"kind": "model_token", "model": "b"}
  made = tokenizers.plan(
    "base",
    {
      "one": {"source": "y"},  # all have it
      "two": {"source": {"kind": "zero"}},
      "three": {"source": token | {"token": "two"}, "force": True},
      "?": {"force": True},
      "<|new|>": {"source": token | {"token_id": 1}},
      "four": {"source": "y"},
      "mean": {},
    },
    None,
    models,
    "b",
  )
  assert [made.ids[t] for t in ("<|new|>", "four", "mean")] == [4, 5, 6]
  rows = {label: embeddings.remap(made, label, dict(models)).read("lm_head.weight") for label in "bxy"}
  assert first(-rows["b"])[:6] == [0, 1, 2, 2, 1, 203]
  assert first(-rows["x"])[:6] == [0, 102, 0, 2, 1, 103]
  assert first(-rows["y"])[:6] == [0, 200, 0, 2, 1, 203]
  for one in rows.values():
    np.testing.assert_allclose(one[6], one[:6].mean(0), rtol=1e-6)


@pytest.mark.parametrize("source", ["base", "union"])
def test_an_id_far_beyond_all_tokens_is_damage(tmp_path, source):
  models = pool(tmp_path)
  path = tmp_path / "b" / "tokenizer.json"
  spec = json.loads(path.read_text())
  spec["model"]["vocab"][next(iter(spec["model"]["vocab"]))] = 2**32 - 1
  path.write_text(json.dumps(spec))
  with pytest.raises(ValueError, match="has id 4294967295, of 4 tokens; the file"):
    tokenizers.plan(source, {}, None, models, "b")


@pytest.mark.parametrize("multiple", [1, 4, 64])
def test_padding_is_the_mean_of_the_rest(tmp_path, multiple):
  models = pool(tmp_path, rows=8)  # padded themselves: those rows are dropped
  made = tokenizers.plan("base", {}, multiple, models, "b")
  assert made.rows == max(4, multiple) == made.config["vocab_size"]
  assert made.padding.tolist() == [False] * 4 + [True] * (made.rows - 4)
  read = embeddings.remap(made, "x", dict(models)).read("model.embed_tokens.weight")
  assert first(read)[:4] == [100, 102, 2, 101]
  np.testing.assert_allclose(read[4:], np.tile(read[:4].mean(0), (made.rows - 4, 1)), rtol=1e-6)
  part = embeddings.remap(made, "x", dict(models)).read("model.embed_tokens.weight", (slice(-1, None),))
  np.testing.assert_array_equal(part, read[-1:])


@pytest.mark.parametrize(
  ("source", "label", "dtype"),
  [
    ("base", "b", "bfloat16"),
    ("base", "x", "bfloat16"),
    ("union", "x", "bfloat16"),
    ("union", "b", "float32"),
  ],
)
def test_the_stored_dtype_stays_where_nothing_is_computed(tmp_path, source, label, dtype):
  models = pool(tmp_path, dtype=ml_dtypes.bfloat16)
  view = embeddings.remap(tokenizers.plan(source, {}, None, models, "b"), label, dict(models))
  assert view.specs["lm_head.weight"].dtype == view.read("lm_head.weight").dtype == dtype


def test_tokens_beyond_the_embeddings_are_missing_and_holes_are_padding(tmp_path):
  holes = word_level(["?", "one", "two"], ["?"])
  holes["model"]["vocab"]["two"] = 3  # no token 2
  short, _ = make(tmp_path, "b", holes, rows=4), make(tmp_path, "x", WORDS["x"], rows=4)
  models = [short, make(tmp_path, "x", WORDS["x"], rows=4)]  # <|x|> is its token 4
  made = tokenizers.plan("base", {}, None, models, "b")
  assert made.padding.tolist() == [False, False, True, False]
  union = tokenizers.plan("union", {}, None, models, "b")
  assert union.notes == ("tokens of the tokenizer without a row in any model's embeddings: 1",)
  assert union.padding[union.ids["<|x|>"]] and (union.rows_of["x"][union.ids["<|x|>"]]) == -1


def test_a_model_without_a_tokenizer_has_the_tokens_of_the_base(tmp_path):
  models = pool(tmp_path)
  (tmp_path / "y" / "tokenizer.json").unlink()
  made = tokenizers.plan("union", {}, None, models, "b")
  assert made.notes == ("y has no tokenizer; its tokens are supposed to be those of b",)
  assert made.rows_of["y"].tolist() == made.rows_of["b"].tolist() and "five" not in made.ids
  (tmp_path / "y" / "tokenizer.model").write_bytes(b"another format")
  with pytest.raises(ValueError, match=r"y has no tokenizer\.json, which"):
    tokenizers.plan("union", {}, None, models, "b")


def test_tied_heads_follow(tmp_path):
  models = pool(tmp_path, head=False, config={"tie_word_embeddings": True})
  view = embeddings.remap(tokenizers.plan("union", {}, None, models, "b"), "b", dict(models))
  assert set(view.specs) == {"model.embed_tokens.weight", "model.layers.0.up.weight"}
  assert view.specs["model.embed_tokens.weight"].shape == (7, 3)


def test_ids_of_special_tokens_come_with_the_tokenizer(tmp_path):
  models = [
    make(tmp_path, "b", WORDS["b"], config={"eos_token_id": 1}),
    make(tmp_path, "x", WORDS["x"], config={"eos_token_id": [0, 4], "pad_token_id": 4}),
  ]
  made = tokenizers.plan("x", {}, None, models, "b")
  assert made.config == {"vocab_size": 5, "eos_token_id": [0, 4], "pad_token_id": 4}
  view = embeddings.remap(made, "b", dict(models))
  assert view.config["eos_token_id"] == [0, 4]
  nested = {"text_config": {"vocab_size": 4}, "eos_token_id": 1}
  assert tokenizers.configured(nested, made.config) == {
    "text_config": {"vocab_size": 5, "eos_token_id": [0, 4], "pad_token_id": 4},
    "eos_token_id": [0, 4],
  }


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("bse", {}, None), "unknown source of the tokenizer 'bse'; did you mean 'base'"),
    (("union", {"a": {"sorce": "b"}}, None), r"tokenizer.tokens\['a'\]: unknown field 'sorce'; did you mean"),
    (("union", {"one": {"source": "z"}}, None), r"\['one'\].source: unknown model 'z'"),
    (("base", {"four": {"source": "b"}}, None), "the model 'b' has no token 'four'"),
    (
      (
        "union",
        {"one": {"source": {"kind": "model_token", "model": "b", "token_id": 9}, "force": True}},
        None,
      ),
      "the model 'b' has no token 9",
    ),
    (
      ("union", {"one": {"source": {"kind": "model_token", "model": "b"}, "force": True}}, None),
      "expected either token or token_id",
    ),
    (("union", {"one": {"source": {"kind": "one"}}}, None), r"tokenizer.tokens\['one'\]: .*'one'"),
    (("union", {}, 0), "pad_to_multiple_of is 0; expected a whole number >= 1"),
    (("union", {}, True), "pad_to_multiple_of is True; expected a whole number"),
  ],
)
def test_wrong_requests_are_named(tmp_path, arguments, message):
  models = pool(tmp_path)
  with pytest.raises(ValueError, match=message):
    tokenizers.plan(*arguments, models, "b")


def test_wrong_folders_are_named(tmp_path):
  models = pool(tmp_path)
  (tmp_path / "b/tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match=r"b/tokenizer.json is not a tokenizer"):
    tokenizers.plan("union", {}, None, models, "b")
  (tmp_path / "b/tokenizer.json").unlink()
  with pytest.raises(ValueError, match=r"b has no tokenizer.json, which choosing a tokenizer needs"):
    tokenizers.plan("union", {}, None, models, "b")
  (tmp_path / "x/config.json").write_text("{}")
  with pytest.raises(ValueError, match=r"vocab_size of config\.json is None"):
    tokenizers.plan("x", {}, None, [("x", checkpoints.open(tmp_path / "x"))], None)
  (tmp_path / "y/config.json").write_text('{"vocab_size": 9}')
  y = checkpoints.open(tmp_path / "y")
  made = tokenizers.plan("y", {}, None, [("y", y)], None)
  with pytest.raises(ValueError, match="vocab_size is 9, and no embedding has as many rows"):
    embeddings.remap(made, "y", {"y": y})
  narrow = {"model.embed_tokens.weight": np.zeros((5, 5), np.float32)}
  checkpoints.write(tmp_path / "narrow", narrow, like=dict(models)["x"])
  (tmp_path / "narrow/config.json").write_text('{"vocab_size": 5}')
  wide = [make(tmp_path, "b", WORDS["b"], head=False), ("narrow", checkpoints.open(tmp_path / "narrow"))]
  made = tokenizers.plan("union", {}, None, wide, None)
  with pytest.raises(
    ValueError, match=r"narrow: tensor .*embed_tokens.* is \[5, 5\]; expected rows as those"
  ):
    embeddings.remap(made, "b", dict(wide))


MESSAGES = [
  {"role": "system", "content": "S"},
  {"role": "user", "content": "U "},
  {"role": "assistant", "content": "A"},
  {"role": "user", "content": "V"},
]


@pytest.mark.parametrize(
  ("name", "text"),
  [
    (
      "alpaca",
      "S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n### Instruction:\nV\n\n### Response:\n",
    ),
    (
      "chatml",
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU <|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
      "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("exaone", "[|system|]S[|endofturn|]\n[|user|]U \n[|assistant|]A[|endofturn|]\n[|user|]V\n[|assistant|]"),
    (
      "llama3",
      "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU"
      "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user"
      "<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("mistral", "<s> [INST] S\n\nU  [/INST] A</s> [INST] V [/INST]"),
  ],
)
def test_named_chat_templates(name, text):
  environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers renders them
  template = environment.from_string(chat.choose(name, []))
  got = template.render(messages=MESSAGES, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
  assert got == text


def test_the_chat_template_of_the_inputs(tmp_path):
  several = [{"name": "tool", "template": "T"}, {"name": "default", "template": "A"}]
  files = {
    "p": {"tokenizer_config.json": json.dumps({"chat_template": "B"})},
    "q": {"tokenizer_config.json": json.dumps({"chat_template": several})},
    "r": {"chat_template.jinja": "A", "tokenizer_config.json": "{}"},
    "s": {"chat_template.json": json.dumps({"chat_template": "C"})},
    "t": {},
  }
  for folder, contents in files.items():
    (tmp_path / folder).mkdir()
    for name, text in contents.items():
      (tmp_path / folder / name).write_text(text)
  folders = {name: tmp_path / name for name in files}
  assert chat.choose("auto", list(folders.values())) == "A"
  assert chat.choose("auto", [folders["s"], folders["p"]]) == "C"
  assert chat.choose("auto", [folders["t"]]) is None
  put = chat.put("D", tokenizer_files.of(folders["q"]), "q")
  with pytest.raises(ValueError, match=r"q/tokenizer_config.json: not valid JSON"):
    chat.put("D", {"tokenizer_config.json": b"{"}, "q")
  assert templates.of(put) == "D" and "chat_template" not in json.loads(put["tokenizer_config.json"])
  assert chat.put("D", {}, "q") == {"chat_template.jinja": b"D"}


def test_chat_templates_of_the_user():
  marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
  assert chat.choose(marked, []) == marked
  with pytest.raises(ValueError, match="chat_template: line 2 is no valid Jinja"):
    chat.choose("{{ messages }}\n{% for %}", [])
  with pytest.raises(ValueError, match="unknown chat template 'lama3'; did you mean 'llama3'"):
    chat.choose("lama3", [])
  for text in ("{{ x | nofilter }}", "{{ 1" + "0" * 6000 + " }}"):
    with pytest.raises(ValueError, match=r"chat_template.* is no valid Jinja"):
      chat.choose(text, [])
  with pytest.raises(ValueError, match="chat_template is nested too deeply"):
    chat.choose("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", [])


@pytest.mark.parametrize(
  ("content", "said"), [("5", "expected an object"), ('{"chat_template": "{{ m["}', "is no valid Jinja")]
)
def test_a_chat_template_that_is_damaged_is_named_with_its_model(tmp_path, content, said):
  (tmp_path / "y").mkdir()
  (tmp_path / "y" / "tokenizer_config.json").write_text(content)
  with pytest.raises(ValueError, match=f"{tmp_path}/y: .*{said}"):
    chat.choose("auto", [tmp_path / "y"])
