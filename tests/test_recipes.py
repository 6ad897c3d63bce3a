"""What recipes say: YAML, both formats, parameters, layers, configs, methods."""

import numpy as np
import pytest

import merge_jax as mj
from merge_jax import recipes
from merge_jax.operators import counting
from merge_jax.recipes import choices, configs, layers, methods, own_methods, parameters, schema, yaml_reader
from merge_jax.recipes.parameters import lookup, parse


def bad(text, *words):
  """A recipe that is refused in one sentence with all of these words."""
  with pytest.raises(ValueError) as caught:
    for raw in yaml_reader.loads(text, "r.yml"):
      recipes.parse(raw, "r.yml")
  said = str(caught.value)
  assert "\n" not in said and said.startswith("r.yml"), said
  for word in words:
    assert word in said, said


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("a: 1\nb: 2\na: 3", ["r.yml:3", "'a'", "twice"]),
    ("a:\n\t- 1", ["r.yml:2", "\\t", "spaces"]),
    ("a: [1, 2", ["not valid YAML"]),
    ("a: !!python/object:os.system x", ["r.yml:1", "not valid YAML"]),
    ("a: !!bool perhaps", ["not valid YAML"]),
    ("a: !!timestamp perhaps", ["not valid YAML"]),
    ("a: !!int ''", ["not valid YAML"]),
    ("a:\n  - !!set {b, c}", ["r.yml:2", "!!set has no order"]),
    ("a: &x [*x]", ["contains itself"]),
    ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
      f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(6)
    ), ["expands to more than"]),
    ("a: \x00", ["control character"]),
    ("a: 2024-13-45", ["not valid YAML"]),
    ("? [1]\n: 2", ["a key is a list"]),
    ("a: " + "[" * 3000, ["r.yml"]),
  ],
)  # fmt: skip
def test_damaged_yaml_is_one_sentence(text, words):
  bad(text, *words)


def test_yaml_anchors_and_merge_keys_are_fine():
  text = "base: &b {weight: 0.5}\na: {<<: *b, density: 1}"
  assert yaml_reader.loads(text, "r.yml")[0]["a"] == {"weight": 0.5, "density": 1}


A = "merge_method: linear\nslices: [{sources: [{model: a, layer_range: "
KIT = "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]\n"
OWN = "method: ties\nbase: b\nmodels: {x: {path: a, weight: 1}}\n"
ALONG = "method: linear\nmodels: {x: {path: a, step: 1}}\nschedule: {name: ema}\n"


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("models: [a]", ["expected method", "merge_method"]),
    ("just words", ["expected method"]),
    ("base_model: b\ngate_mode: hidden\nexperts: [{source_model: a}]", ["experts", "mergekit-moe's"]),
    ("merge_method: moe\nbase_model: b\nexperts: []", ["experts", "mergekit-moe's"]),
    ("genome: {models: [a], merge_method: ties}\ntasks: []", ["genome", "mergekit-evolve's"]),
    ("layer_slices: [{model: a, start: 0, end: 4}]", ["layer_slices", "bakllama's"]),
    (KIT + "base_modl: c", ["base_modl", "did you mean 'base_model'"]),
    (KIT.replace("ties", "tiess"), ["'tiess'", "did you mean 'ties'"]),
    (KIT + "select_topk: 0.2", ["select_topk", "under parameters"]),
    (KIT.replace("}}]", "}, density: 0.5}]"), ["models[0]", "density", "under parameters"]),
    (KIT + "parameters: {densty: 0.2}", ["densty", "did you mean 'density'"]),
    (KIT.replace("weight: 1", "wieght: 1"), ["models[0]", "wieght", "did you mean 'weight'"]),
    (KIT.replace("weight: 1", "weight: 1, lambda: 2"), ["models[0]", "lambda", "own parameters"]),
    (KIT + "slices: []", ["models and slices", "exactly one"]),
    ("merge_method: linear", ["none of models, slices, modules"]),
    ("merge_method: linear\nmodels: []", ["models is empty"]),
    ("merge_method: linear\nslices: [{sources: [{model: a}]}]", ["slices[0].sources[0]", "layer_range"]),
    (A + "[2, 2]}]}]", ["the slices hold no layer"]),
    (A + "[2, 1]}]}]", ["layer_range is [2, 1]"]),
    (A + "[0, true]}]}]", ["layer_range"]),
    (A + "[0, 2]}, {model: b, layer_range: [0, 3]}]}]",
     ["[2, 3] layers"]),
    (A + "[0, 2]}], residual_weight: 1}]",
     ["residual_weight", "never used"]),
    (KIT + "dtype: bf16", ["'bf16'", "bfloat16"]),
    (KIT + "tokenizer_source: base\ntokenizer: {source: base}", ["one of them"]),
    (KIT + "tokenizer: {source: base, pad: 8}", ["tokenizer", "'pad'", "pad_to_multiple_of"]),
    (KIT + "tokenizer: {pad_to_multiple_of: 0}", ["pad_to_multiple_of is 0"]),
    (KIT + "parameters: {lambda: {vale: 1}}", ["lambda", "'vale'", "value"]),
    (KIT + "parameters: {lambda: {filter: mlp}}", ["'value'", "missing"]),
    (KIT + "parameters: {lambda: []}", ["empty list"]),
    (KIT + f"parameters: {{lambda: [1, {'9' * 400}, 1]}}", ["parameters.lambda is [1, 9999", "a number"]),
    (KIT + "parameters: {lambda: [{value: 1, filter: a}, 2]}", ["lambda[1]", "{value: 2}"]),
    (KIT + "parameters: {lambda: .nan}", ["lambda", "finite"]),
    (KIT.replace("model: a", "model: 7"), ["models[0].model is 7"]),
    (KIT.replace("model: a", "model: {path: a, revison: x}"), ["models[0].model", "revison"]),
    (KIT.replace("base_model: b", "base_model: {model: b, lra: x}"), ["base_model: unknown field 'lra'"]),
    (KIT.replace("model: a", "model: {model: null}"), ["models[0].model is {'model': None}"]),
    (KIT.replace("model: a", "model: {model: [a]}"), ["models[0].model.model is ['a']; expected a path"]),
    (KIT.replace("model: a", "model: {model: a, lora: ''}"), ["models[0].model.lora is ''"]),
    (KIT.replace("weight: 1", "weight: 0,5"), ["models[0]: a key of parameters is 5", "a point, no comma"]),
    (KIT + "tokenizer: {tokens: {1: {source: a}}}", ["tokenizer: a key of tokens is 1; expected a string"]),
    (OWN + "sed: 1", ["'sed'", "did you mean 'seed'"]),
    (OWN.replace("ties", "tie"), ["did you mean 'ties'"]),
    (OWN + "parameters: {densty: 1}", ["densty", "did you mean 'density'"]),
    (OWN.replace("weight", "wieght"), ["models.x", "wieght", "weight"]),
    (OWN.replace("path: a, ", ""), ["models.x", "'path'", "missing"]),
    (OWN + "rules: [{tensors: '(', method: linear}]", ["rules[0].tensors", "regular expression"]),
    (OWN + "rules: [{tensors: a, parameters: {weight: {y: 1}}}]", ["rules[0]", "'y'", "x"]),
    (OWN + "rules: [{tensors: a, parameters: {scaling: {x: 1}}}]", ["scaling is one for all"]),
    (OWN + "rules: [{tensors: a, parameters: {weight: {1: 1}}}]", ["unknown model '1'", "Known: x"]),
    (OWN.replace("{x: {path: a, weight: 1}}", "[a]") + "rules: [{tensors: a, parameters: {weight: {a: 1}}}]",
     ["rules[0].parameters.weight", "models is a list"]),
    (OWN.replace("base: b", "base: {path: b, weight: 7}"), ["base: unknown field 'weight'"]),
    (ALONG + "parameters: {weight: 2}", ["a schedule, and weights"]),
    (ALONG + "rules: [{tensors: a, parameters: {weight: {x: 1}}}]", ["a schedule, and weights"]),
    (KIT.replace("weight: 1", "weight: 1, lambda: 2"), ["models[0]", "lambda", "own parameters"]),
    (OWN + "seed: -1", ["seed is -1"]),
    (OWN + "semantics: mergekit", ["semantics"]),
    (OWN + "schedule: {name: ema}", ["has no step"]),
    (OWN.replace("{x: {path: a, weight: 1}}", "7"), ["models is 7"]),
  ],
)  # fmt: skip
def test_recipes_that_are_refused(text, words):
  bad(text, *words)


@pytest.mark.parametrize(
  ("given", "dtype"),
  [("dtype: torch.bfloat16", "bfloat16"), ("dtype: float32\nout_dtype: torch.float16", "float16")],
)
def test_dtypes_may_be_called_as_torch_calls_them(given, dtype):
  assert recipes.parse(yaml_reader.loads(KIT + given, "r.yml")[0], "r.yml").dtype == dtype


def test_what_has_no_effect_is_a_note():
  """Also what says something to another method: recipes on the hub give sce a lambda and a filter_wise."""
  recipe = recipes.parse(
    yaml_reader.loads(KIT + "parameters: {int8_mask: true, filter_wise: false, select_topk: 1}", "r")[0], "r"
  )  # fmt: skip
  assert recipe.notes == tuple(
    f"{x} has no effect on ties" for x in ("int8_mask", "filter_wise", "select_topk")
  )


def test_what_is_one_for_all_models_may_stand_under_one_beside_it():
  """Where it says the same, or the recipe says it, too; mergekit never looks there."""
  text = KIT.replace("weight: 1", "weight: 1, normalize: true, lambda: 2") + "parameters: {lambda: 1.5}"
  recipe = recipes.parse(yaml_reader.loads(text, "r")[0], "r")
  said = "is one for all models of ties: under one of them it has no effect"
  assert recipe.notes == (f"normalize {said}", f"lambda {said}")
  assert list(recipe.modules[0].slices[0].inputs[0].settings) == ["weight"]


@pytest.mark.parametrize(
  ("raw", "model"),
  [
    ("a", ("a", None, None, None)),
    ("a/", ("a", None, None, None)),
    ("org/a@v1+org/l@v2", ("org/a@v1", None, "org/l@v2", None)),
    ({"path": "a", "revision": "v1"}, ("a", "v1", None, None)),
    ({"model": {"path": "a"}, "lora": {"path": "l", "revision": "r"}}, ("a", None, "l", "r")),
    ({"model": "org/a@v1"}, ("org/a@v1", None, None, None)),
    ({"model": "a", "lora": "l"}, ("a", None, "l", None)),
  ],
)
def test_model_references(raw, model):
  assert schema.model(raw, "m") == schema.Model(*model)


def test_references_of_one_key_read_as_their_words():
  written = (
    "base_model: {base}\nmodels: [{{model: {a}, parameters: {{weight: 1}}}}]\ntokenizer: {{source: {a}}}"
  )
  words, keys = ("merge_method: ties\n" + written.format(base=base, a=a) for base, a in (
    ("org/b", "org/a"), ("{model: org/b}", "{model: org/a}")))  # fmt: skip
  one, other = (recipes.parse(yaml_reader.loads(text, "r")[0], "r") for text in (words, keys))
  assert one == other and one.tokenizer.source == "org/a"


@pytest.mark.parametrize(
  ("written", "read"),
  [
    ("{model: {path: org/a}}", "org/a"),
    ("{kind: model_token, model: {model: {path: org/a}}, token: x}",
     {"kind": "model_token", "model": "org/a", "token": "x"}),
    ("{kind: zero}", {"kind": "zero"}),
    ("org/a", "org/a"),
  ],
)  # fmt: skip
def test_sources_of_tokens_may_be_objects(written, read):
  text = f"{KIT}tokenizer: {{tokens: {{th: {{source: {written}, force: true}}}}}}"
  recipe = recipes.parse(yaml_reader.loads(text, "r")[0], "r")
  assert recipe.tokenizer.tokens == {"th": {"source": read, "force": True}}


def test_an_empty_tokenizer_is_the_union():
  recipe = recipes.parse(yaml_reader.loads(KIT + "tokenizer: {}", "r")[0], "r")
  assert recipe.tokenizer == schema.Tokenizer("union")


def test_a_path_that_is_there_is_a_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a+b").mkdir()
  assert schema.model("a+b", "m") == schema.Model("a+b")


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("values", [[3], [0, 1], [0, 1, 0.25], [1, 2, 3, 4, 5]])
def test_gradients_interpolate_over_layers(values, count):
  for layer in range(count):
    t = 1.0 if count == 1 else layer / (count - 1)
    got = lookup("t", [(dict(t=parse(values, "t")), "w")], parameters.position(layer, count))
    np.testing.assert_allclose(
      got, np.interp(t, np.linspace(0, 1, len(values)), values) if len(values) > 1 else 3
    )


@pytest.mark.parametrize("word", ["true", "Yes", "on", "1", 1, True])
def test_flags_may_be_words_or_numbers(word):
  no = {"true": "false", "Yes": "No", "on": "off", "1": "0", 1: 0}[word]
  assert parameters.flag(word, "x") and not parameters.flag(no, "x")


def test_gradients_of_flags_step():
  scopes = [({"normalize": parameters.parse([1, 0], "normalize")}, "w")]
  found = [parameters.lookup("normalize", scopes, i / 4, steps=True) for i in range(5)]
  assert found == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("values", [[True, False, True], ["a", "b", "c"]])
def test_words_and_booleans_step(values):
  assert [parameters.at(values, t) for t in (0, 0.49, 0.5, 0.99, 1)] == [values[i] for i in (0, 0, 1, 1, 2)]


def test_scopes_and_filters():
  own = dict(t=parse([dict(filter="mlp", value=1), dict(filter="attn", value=2)], "t"))
  module, top = (
    dict(t=parse(dict(filter="norm", value=3), "t")),
    dict(t=parse([dict(value=4, filter="*")], "t")),
  )
  found = [
    lookup("t", [(own, name), ({}, name), (module, name), (top, name)], 0.0)
    for name in ("x.mlp.attn", "x.attn", "x.norm", "embed")
  ]
  assert found == [1, 2, 3, 4]
  assert lookup("s", [(own, "mlp")], 0.0) is None


@pytest.mark.parametrize("value", [True, "x", "nan", float("inf"), 10**400, "1e999"])
def test_numbers_that_are_none(value):
  with pytest.raises(ValueError, match=r"w is .*; expected a finite number"):
    parameters.number(value, "w")


LLAMA = [f"model.layers.{i}.{n}" for i in range(3) for n in ("mlp.w", "mlp.experts.0.w")]
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def test_stacks_are_found_from_names():
  assert layers.stacks([*LLAMA, *OUTSIDE, "v.mlp.0.w", "v.mlp.2.w"]) == (("model.layers", 3),)
  assert layers.stacks([f"transformer.h.{i}.attn.c_attn.weight" for i in range(12)]) == (
    ("transformer.h", 12),
  )
  assert layers.stacks([f"h.{i}.w" for i in range(2)]) == (("h", 2),)
  assert layers.stacks(["a.weight", "b"]) == ()
  t5 = [
    f"{part}.block.{i}.layer.{j}.w" for part in ("encoder", "decoder") for i in range(2) for j in range(3)
  ]
  assert set(layers.modules(layers.stacks(t5))) == {"encoder", "decoder"}


def test_layers_are_stacked_anew():
  targets = layers.restack(
    [[*LLAMA, *OUTSIDE]] * 2, layers.Stack("model.layers", 3), [[(0, 2), (1, 3)], [(2, 3)]]
  )
  got = {target.name: (target.names, target.slice, target.layer) for target in targets}
  assert got["model.layers.0.mlp.w"] == (("model.layers.0.mlp.w", "model.layers.1.mlp.w"), 0, 0)
  assert got["model.layers.2.mlp.experts.0.w"] == (("model.layers.2.mlp.experts.0.w",), 1, 0)
  assert got["model.embed_tokens.weight"][1] == 0
  assert got["model.norm.weight"][1] == got["lm_head.weight"][1] == 1
  assert len(got) == 9


def qwen(count, first_sliding=None, **more):
  types = [
    "full_attention" if first_sliding is None or i < first_sliding else "sliding_attention"
    for i in range(count)
  ]
  return dict(num_hidden_layers=count, layer_types=types, max_window_layers=first_sliding or count, **more)


@pytest.mark.parametrize(
  ("config", "order", "expected"),
  [
    (qwen(3), [0, 1, 1, 2], qwen(4)),
    (qwen(3, 2), [0, 0, 1, 2, 2], qwen(5, 3)),
    ({"n_layer": 2, "eos_token_id": [1, 2]}, [0, 1, 0], {"n_layer": 3, "eos_token_id": [1, 2]}),
    ({"text_config": {"num_hidden_layers": 2}}, [1], {"text_config": {"num_hidden_layers": 1}}),
    ({"num_layers": 2, "no_rope_layers": [0, 1]}, [1, 1, 0], {"num_layers": 3, "no_rope_layers": [1, 1, 0]}),
    ({"num_layers": 3, "mlp_only_layers": [0]}, [0, 0, 2], {"num_layers": 3, "mlp_only_layers": [0, 1]}),
    ({"num_layers": 3, "first_k_dense_replace": 1}, [0, 0, 1], {"num_layers": 3, "first_k_dense_replace": 2}),
    ({"num_layers": 4, "num_dense_layers": 2}, [0, 2, 3], {"num_layers": 3, "num_dense_layers": 1}),
    ({"num_layers": 4, "cross_attention_layers": [1, 3]}, [0, 1, 1, 3, 3],
     {"num_layers": 5, "cross_attention_layers": [1, 2, 3, 4]}),
    ({"num_layers": 3, "moe_layer_start_index": 1, "moe_layer_end_index": 2}, [0, 1, 2, 1, 2],
     {"num_layers": 5, "moe_layer_start_index": 1, "moe_layer_end_index": 4}),
    ({"num_hidden_layers": 2, "num_blocks": 2}, [0, 1, 1], {"num_hidden_layers": 3, "num_blocks": 3}),
    ({"model_type": "gemma2", "num_layers": 4}, [1, 2, 2, 3],
     {"model_type": "gemma2", "num_layers": 4,
      "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full")]}),
    ({"num_layers": 6, "sliding_window_pattern": 3}, [0, 2],
     {"num_layers": 2, "sliding_window_pattern": 3, "layer_types": ["sliding_attention", "full_attention"]}),
  ],
)  # fmt: skip
def test_configs_follow_the_layers(config, order, expected):
  count = next(v for v in (*config.values(), *config.get("text_config", {}).values()) if isinstance(v, int))
  assert configs.restack(config, count, [(config, i) for i in order]) == expected


@pytest.mark.parametrize(
  ("prefix", "counts"),
  [
    ("vision_model.encoder.layers", [2, 3]), ("model.visual.blocks", [2, 3]),
    ("text_model.encoder.layers", [3, 2]), ("model.language_model.layers", [3, 2]), ("model.layers", [3, 2]),
  ],
)  # fmt: skip
def test_a_part_of_a_config_is_told_by_the_name_of_its_layers(prefix, counts):
  config = {f"{part}_config": {"num_hidden_layers": 2} for part in ("text", "vision")}
  found = configs.restack(config, 2, [(config, i) for i in (0, 1, 1)], prefix=prefix)
  assert [part["num_hidden_layers"] for part in found.values()] == counts


def test_configs_that_count_two_modules():
  bart = {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2}
  t5 = {"num_layers": 2, "num_decoder_layers": 2}
  for config, module, counts in (
    (bart, "encoder", [3, 2, 3]), (bart, "decoder", [2, 3, 2]),
    (t5, "encoder", [3, 2]), (t5, "decoder", [2, 3]),
    (bart | {"num_hidden_layers": 4}, "encoder", [3, 2, 4]),
  ):  # fmt: skip
    found = configs.restack(config, 2, [(config, i) for i in (0, 1, 1)], module)
    assert list(found.values()) == counts


@pytest.mark.parametrize(
  ("config", "order", "words"),
  [
    ({"vocab_size": 7}, [0], "nowhere"),
    ({"num_hidden_layers": 4, "decoder_sparse_step": 2}, [0, 2], "every 2 layers"),
    ({"num_hidden_layers": 4, "first_k_dense_replace": 1}, [1, 0], "dense"),
    ({"num_hidden_layers": 4, "moe_layer_end_index": 2}, [0, 3, 1], "sparse"),
    ({"num_hidden_layers": 4, "cross_attention_frequency": 2}, [0, 2], "every 2 layers"),
    ({"audio_config": {"num_hidden_layers": 4}}, [0], "nowhere"),
  ],
)
def test_configs_that_cannot_follow(config, order, words):
  with pytest.raises(ValueError, match=words):
    configs.restack(config, 4, [(config, i) for i in order], prefix="text_model.layers")


@pytest.mark.parametrize("elements", [1, 3, 10, 1000, 999_983])
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.1, 0.2, 0.7, 0.9, 1.0])
def test_counts_are_those_of_float64(elements, density):
  got = methods._trim({"density": np.array([density])}, elements, True)["density"]
  kept = min(elements, max(1, int(density * elements))) if density > 0 else 0
  assert got.tolist() == [kept] and got.dtype == np.uint32


@pytest.mark.parametrize("name", methods.MERGEKIT)
@pytest.mark.parametrize("mergekit", [True, False])
def test_every_method_has_arguments(name, mergekit):
  method = methods.MERGEKIT[name]
  settings = {"weight": parse(0.5, "w"), "t": parse(0.25, "t")}
  tensor = choices.Tensor("w", ("w", "w"), 12, 0.0, (settings,))
  inputs = [schema.Input(schema.Model(label), label=label) for label in ("a", "b")]
  choice = choices.of_mergekit(name, inputs, tensor, mergekit=mergekit, task_vectors=True)
  assert choice.factory in own_methods.OWN
  assert (choice.weights == (0.5, 0.5)) if method.weighted else (choice.weights is None)
  for value in choice.arguments.values():
    assert isinstance(value, bool | int | float | str | np.ndarray)


@pytest.mark.parametrize(
  ("name", "settings", "words"),
  [
    ("linear", {}, "needs weight of a for tensor 'w'"),
    ("slerp", {}, "needs t for tensor 'w'"),
    ("linear", {"weight": "x"}, "weight is 'x'"),
    ("linear", {"weight": 0}, "sum to 0"),
    ("ties", {"weight": 1, "density": 1.5}, "density is 1.5; expected a number between 0 and 1"),
    ("ties", {"weight": 1, "normalize": "maybe"}, "normalize is 'maybe'; expected true or false"),
    ("karcher", {"max_iter": 1.5}, "whole number"),
  ],
)
def test_numbers_are_checked_for_each_tensor(name, settings, words):
  scope = {key: parse(value, key) for key, value in settings.items()}
  tensor = choices.Tensor("w", ("w",), 12, 0.0, (scope,))
  with pytest.raises(ValueError, match=words):
    choices.of_mergekit(
      name, [schema.Input(schema.Model("a"), label="a")], tensor, mergekit=True, task_vectors=True
    )


def test_steps_of_karcher_end_where_nothing_moves():
  tensor = choices.Tensor("w", ("w",), 12, 0.0, ({"max_iter": parse(20_000, "m")},))
  inputs = [schema.Input(schema.Model("a"), label="a")]
  choice = choices.of_mergekit("karcher", inputs, tensor, mergekit=True, task_vectors=False)
  assert choice.arguments["max_iter"] == 10_000


@pytest.mark.parametrize("name", ["task_arithmetic", "dare_linear", "breadcrumbs", "della_linear"])
def test_weights_that_cancel_divide_a_sum_of_task_vectors_by_1(name):
  scope = {"weight": parse(0, "w"), "normalize": parse(True, "n")}
  tensor = choices.Tensor("w", ("w",), 12, 0.0, (scope,))
  inputs = [schema.Input(schema.Model("a"), label="a")]
  choice = choices.of_mergekit(name, inputs, tensor, mergekit=True, task_vectors=True)
  assert choice.arguments["normalize"] is False
  with pytest.raises(ValueError, match="sum to 0"):
    choices.of_mergekit(name, inputs, tensor, mergekit=False, task_vectors=True)


def test_operators_have_one_form_for_all_tensors():
  def choice(method, density, scaling):
    return choices.Choice(method, method, {"density": np.array(density), "scaling": scaling}, None)

  same = choices.operators([choice("ties", [0.2, 0.2], 1.0), choice("ties", [0.3, 0.3], 2.0)])
  assert all(np.shape(one.sparsify[0].density) == () for one in same)
  linear = [
    choices.Choice("task_arithmetic", "task_arithmetic", {"scaling": s}, None) for s in (1.0, 0.5, 1.0)
  ]
  made = choices.operators(linear)
  assert made[0] is made[2] and choices.structure(made[0]) == choices.structure(made[1])


@pytest.mark.parametrize("elements", [10, 2**24 + 3, 128256 * 4096, 2**32 + 1])
@pytest.mark.parametrize(("density", "gamma"), [(0.7, 0.1), (0.05, 0.01), (0.6, 0.3), (1.0, 0.0)])
def test_counts_are_mergekits_however_large_a_tensor_is(elements, density, gamma):
  given = {"density": np.array([density]), "gamma": np.array([gamma]), "rescale": False}
  size, kept = counting.limbs(elements), int(density * elements)
  at_least_one = max(kept, 1)
  off = 0 if elements < 2**32 else elements >> 23  # of more than uint32 has only a density is told

  def count(share):
    return counting.whole(counting.fraction(size, share)[0])

  trim = mj.trim(methods._trim(given, elements, True)["density"], scope="tensor", keep="exact")
  assert abs(counting.whole(trim.rank(size, trim.density)[0]) - at_least_one) <= off
  cut = methods._outliers(given, elements, True)
  assert abs(count(cut["density"]) - kept) <= off and abs(count(cut["gamma"]) - int(gamma * elements)) <= off


def test_numbers_that_each_model_may_have_are_the_operators():
  """What a recipe may say of each model is what the rule, or one of its blocks, takes one for each of."""

  def per_model(part):
    blocks = (*part.sparsify, part.reduce) if isinstance(part, mj.TaskVector) else ()
    return {*getattr(part, "per_model", ()), *(name for block in blocks for name in per_model(block))}

  needed = {"density": 0.5, "t": 0.1}
  for name, own in own_methods.OWN.items():
    arguments = {
      key: needed[key] for key, one in own_methods.keywords(name).items() if one.default is one.empty
    }
    assert per_model(own_methods.factory(name)(**arguments)) == set(own), name
