"""Recipes in mergekit's format that both programs run; paths are those of `pools.write_all`.

A recipe of `METHODS` runs on three architectures, its `$` being the architecture's folder.
"""


def _models(*models: str, folder: str = "$") -> str:
  """`models:` from "name key: value, …" each."""
  rows = (model.partition(" ") for model in models)
  return "models:\n" + "".join(f"- {{model: {folder}/{n}, parameters: {{{p}}}}}\n" for n, _, p in rows)


THREE = _models("x1 weight: 0.5", "x2 weight: 0.3", "x3 weight: 0.4")
SPARSE = _models(
  "x1 weight: 0.5, density: 0.6", "x2 weight: 0.3, density: 0.3", "x3 weight: 0.4, density: 0.5"
)
ONLY = _models("x1", "x2", "x3")
BASE = "base_model: $/base\n"


def _merge(
  method: str, models: str, *, base: bool = True, dtype: str = "float32", **parameters: object
) -> str:
  """A recipe; parameters of the whole merge are written as they stand in YAML."""
  told = "".join(f"  {name.rstrip('_')}: {value}\n" for name, value in parameters.items())
  return f"merge_method: {method}\n{models}{BASE if base else ''}dtype: {dtype}\n" + (
    f"parameters:\n{told}" if told else ""
  )


METHODS = {
  "linear": _merge("linear", THREE, base=False),
  "linear-sum": _merge("linear", THREE, base=False, normalize="false"),
  "task_arithmetic": _merge("task_arithmetic", THREE, lambda_=0.7),
  "ties": _merge("ties", SPARSE, lambda_=1.3),
  "ties-sum": _merge("ties", SPARSE, normalize="false"),
  "breadcrumbs": _merge("breadcrumbs", SPARSE, gamma=0.03),
  "breadcrumbs_ties": _merge("breadcrumbs_ties", SPARSE, gamma=0.05, lambda_=0.9),
  "sce": _merge("sce", ONLY, select_topk=0.4),
  "slerp": _merge("slerp", _models("base", "x1"), t=0.35),
  "nuslerp": _merge("nuslerp", _models("x1 weight: 0.7", "x2 weight: 0.4"), base=False),
  "nuslerp-row": _merge("nuslerp", _models("x1 weight: 0.7", "x2 weight: 0.4"), nuslerp_flatten="false"),
  "multislerp": _merge("multislerp", THREE),
  "karcher": _merge("karcher", ONLY, base=False),
  "model_stock": _merge("model_stock", ONLY),
  "model_stock-row": _merge("model_stock", ONLY, filter_wise="true"),
  "nearswap": _merge("nearswap", _models("base", "x1"), t=0.05),
  "arcee_fusion": _merge("arcee_fusion", _models("base", "x1")),
  "ram": _merge("ram", ONLY, epsilon=0.15),
  "ramplus_tl": _merge("ramplus_tl", ONLY, epsilon=0.15, r=0.2, alpha=0.3),
}
ARCHITECTURES = ("llama", "gpt2", "qwen2")

VARIANTS = {
  "task-normalized": _merge("task_arithmetic", THREE, normalize="true"),
  "task-negative": _merge("task_arithmetic", _models("x1 weight: 0.5", "x2 weight: -0.4", "x3 weight: 0")),
  "ties-dense": _merge("ties", THREE),
  "ties-rescaled": _merge("ties", SPARSE, rescale="true", int8_mask="true"),
  "ties-none": _merge("ties", _models("x1 weight: 0.5, density: 0", "x2 weight: 1, density: 0.001")),
  "ties-negative": _merge("ties", _models("x1 weight: 0.5, density: 0.5", "x2 weight: -0.4, density: 0.5")),
  "breadcrumbs-normalized": _merge("breadcrumbs", SPARSE, normalize="true", rescale="true"),
  "breadcrumbs-most": _merge("breadcrumbs", THREE, density=0.95, gamma=0.2),
  "sce-all": _merge("sce", ONLY),
  "slerp-far": _merge("slerp", _models("x3", "x1"), t=1.4).replace("$/base", "$/x1"),
  "nuslerp-base": _merge("nuslerp", _models("x1 weight: 0.7", "x2 weight: 0.4")),
  "nuslerp-column": _merge(
    "nuslerp", _models("x1 weight: 0.7", "x2 weight: 0.4"), base=False,
    nuslerp_flatten="false", nuslerp_row_wise="true",
  ),
  "multislerp-no-base": _merge("multislerp", THREE, base=False, normalize_weights="false"),
  "karcher-base": _merge("karcher", ONLY, max_iter=3),
  "linear-base": _merge("linear", ONLY, weight=0.5),
  "base-listed": _merge(
    "ties", _models("base", "x1 weight: 0.5, density: 0.6", "x2 weight: 1, density: 0.4")
  ),
  "passthrough": _merge("passthrough", _models("x1"), base=False),
  "passthrough-scale": _merge("passthrough", _models("x1 scale: 0.25"), base=False),
  "nearswap-wide": _merge("nearswap", _models("base", "x1"), t=1),
  "ram-all": _merge("ram", ONLY),
}  # fmt: skip

PARAMETERS = {
  "gradient": _merge("linear", _models("x1 weight: [0, 0.3, 1]", "x2 weight: [1, 0]"), base=False),
  "gradient-mixed": _merge(
    "ties", _models("x1 weight: [0.2, 1], density: 0.5", "x2 weight: 1"), density="[1, 0.3]"
  ),
  "filter": _merge(
    "task_arithmetic",
    _models(
      "x1 weight: [{filter: self_attn, value: [0, 1]}, {filter: mlp, value: 0.5}, {value: 0.1}]",
      "x2 weight: [{filter: layers.1., value: 1}, {filter: lm_head, value: -0.5}]",
      "x3",
    ),
    weight="[{filter: norm, value: 0.7}, {value: 0.2}]",
  ),
  "filter-star": _merge(
    "slerp", _models("base", "x1"),
    t="[{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}, "
    "{filter: '*', value: 0.5}]",
  ),
  "strings": _merge("linear", _models('x1 weight: "1e-1"', 'x2 weight: "0.4"'), base=False),
  "flags": _merge("linear", THREE, base=False, normalize="[{filter: mlp, value: false}, {value: true}]"),
  "flag-gradient": _merge("linear", THREE, base=False, normalize="[false, true]"),
  "precedence": """
merge_method: linear
dtype: float32
parameters: {weight: 0.1, normalize: false}
slices:
- sources:
  - {model: $/x1, layer_range: [0, 2], parameters: {weight: 0.7}}
  - {model: $/x2, layer_range: [0, 2]}
  parameters: {weight: [0.3, 0.6]}
- sources:
  - {model: $/x1, layer_range: [2, 3]}
  - {model: $/x3, layer_range: [2, 3], parameters: {weight: [{filter: mlp, value: 0.9}]}}
""",
}  # fmt: skip

SLICES = {
  "frankenmerge": """
merge_method: passthrough
dtype: float32
slices:
- sources: [{model: $/x1, layer_range: [0, 2]}]
- sources: [{model: $/x2, layer_range: [1, 3]}]
- sources:
  - {model: $/x1, layer_range: [2, 3], parameters: {scale: [{filter: down_proj, value: 0}, {value: 1}]}}
""",
  "slices-ties": """
merge_method: ties
base_model: $/base
dtype: float32
parameters: {density: 0.5, weight: 1.0}
slices:
- sources:
  - {model: $/x1, layer_range: [0, 2], parameters: {weight: [0.2, 1.0]}}
  - {model: $/x2, layer_range: [1, 3]}
  - {model: $/base, layer_range: [0, 2]}
- sources:
  - {model: $/x2, layer_range: [0, 1], parameters: {density: [0.9, 0.3]}}
  - {model: $/x3, layer_range: [1, 2]}
  - {model: $/base, layer_range: [2, 3]}
""",
  "slices-filters": """
merge_method: linear
dtype: float32
slices:
- sources:
  - {model: $/x1, layer_range: [1, 3], parameters: {weight: [{filter: layers.1., value: 0.9}, {value: 0.2}]}}
  - {model: $/x2, layer_range: [0, 2], parameters: {weight: [{filter: layers.1., value: 0.4}, {value: 0.3}]}}
  parameters: {normalize: [{filter: layers.0., value: false}]}
""",
  "slices-base": """
merge_method: task_arithmetic
base_model: $/base
dtype: float32
parameters: {weight: 0.5}
slices:
- sources:
  - {model: $/x1, layer_range: [0, 1]}
  - {model: $/base, layer_range: [0, 1]}
- base_model: $/x3
  sources:
  - {model: $/x1, layer_range: [1, 3]}
  - {model: $/x3, layer_range: [1, 3]}
""",
  "slices-slerp": """
merge_method: slerp
base_model: $/x1
dtype: float32
slices:
- sources:
  - {model: $/x1, layer_range: [0, 3]}
  - {model: $/x2, layer_range: [0, 3]}
parameters:
  t:
  - {filter: self_attn, value: [0, 0.5, 1]}
  - {value: [1, 0]}
""",
}

MODULES = {
  "modules": """
merge_method: linear
dtype: float32
modules:
  default:
    slices:
    - sources:
      - {model: $/x1, layer_range: [0, 2], parameters: {weight: 0.5}}
      - {model: $/x2, layer_range: [1, 3], parameters: {weight: [0.3, 0.6]}}
    parameters: {normalize: [{filter: mlp, value: false}, {value: true}]}
""",
}

DTYPES = {
  "out-bfloat16": _merge("task_arithmetic", THREE) + "out_dtype: bfloat16\n",
  "stored-bfloat16": _merge("linear", THREE, base=False)
  .replace("dtype: float32\n", "")
  .replace("$", "bfloat16"),
  "bfloat16-to-float32": _merge("task_arithmetic", THREE).replace("$", "bfloat16"),
}

CHAIN = {
  "chain": _merge("linear", THREE, base=False)
  + "name: first\n---\n"
  + _merge(
    "task_arithmetic",
    "models:\n- {model: first, parameters: {weight: 0.5}}\n- {model: $/x3, parameters: {weight: 1}}\n",
  ),
}

WORDS = _models("base weight: 0.5", "x2 weight: 0.3", "x3 weight: 0.2", folder="words")
ON_WORDS = "base_model: words/base\n"
TOKENIZERS = {
  "union": _merge("linear", WORDS, base=False) + ON_WORDS + "tokenizer_source: union\n",
  "union-tied": _merge("linear", WORDS.replace("words", "tied"), base=False)
  + "base_model: tied/base\ntokenizer: {source: union}\n",
  "union-task": _merge("task_arithmetic", WORDS, base=False) + ON_WORDS + "tokenizer_source: union\n",
  "tokenizer-base": _merge("linear", WORDS, base=False) + ON_WORDS + "tokenizer_source: base\n",
  "tokenizer-model": _merge("linear", WORDS, base=False) + "tokenizer_source: words/x3\n",
  "tokenizer-padded": _merge("ties", WORDS, base=False)
  + ON_WORDS
  + "tokenizer: {source: union, pad_to_multiple_of: 16}\n",
  "tokens": _merge("linear", WORDS, base=False)
  + ON_WORDS
  + """tokenizer:
  source: union
  tokens:
    "<|tool|>": {source: words/x2}
    "on": {source: {kind: zero}}
    "in": {source: {kind: model_token, model: words/x2, token: "on"}, force: true}
    "<|user|>": {source: {kind: model_token, model: words/base, token_id: 5}}
    "<|new|>": {source: {kind: model_token, model: words/base, token: "a"}}
    "a": {source: words/x2, force: true}
""",
}

QWEN2 = SLICES["frankenmerge"].replace("$", "qwen2")
"""No golden: with more or fewer layers than before, mergekit stops at, or writes, the old `layer_types`."""

RANDOM = {
  name: _merge(
    name, _models("x1 weight: 1, density: 0.4"), **({"epsilon": 0.3} if "della" in name else {})
  ).replace("$", "llama")
  for name in ("dare_linear", "dare_ties", "della", "della_linear")
}
"""No goldens: the masks are other ones. They keep four in ten, and the sum of magnitudes."""

RECIPES = (
  {f"{name}-{a}": text.replace("$", a) for name, text in METHODS.items() for a in ARCHITECTURES}
  | {
    name: text.replace("$", "llama")
    for group in (VARIANTS, PARAMETERS, SLICES, MODULES, DTYPES, CHAIN, TOKENIZERS)
    for name, text in group.items()
  }
  | {
    "frankenmerge-gpt2": SLICES["frankenmerge"].replace("$", "gpt2").replace("down_proj", "mlp.c_proj"),
    "slices-ties-qwen2": SLICES["slices-ties"].replace("$", "qwen2"),
  }
)

USUAL = [
  name
  for name in RECIPES
  if name.rpartition("-")[0] not in METHODS
  or name.endswith(ARCHITECTURES[list(METHODS).index(name.rpartition("-")[0]) % len(ARCHITECTURES)])
]
"""Every recipe, those of `METHODS` for one architecture each."""
