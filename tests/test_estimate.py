"""Plans of searches: bytes as the compiled program and real arrays have them, formulas, advice, the job."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import models, recycle
from merge_jax.estimate import costs, devices, plan, program, workload
from merge_jax.recycle import pool, settings
from merge_jax.recycle.settings import Evals
from merge_jax.training import puzzles
from tests import pools
from tests.further import further
from tests.test_launch import launch

TINY = pools.CONFIG | {"num_hidden_layers": 9, "vocab_size": 96}
SMALL = devices.Device("small", 1e6, 1e12, 1e12, 1e11, 1e10, 1e9, 4, 1e8)


def job(mesh="", config=TINY, **options):
  model = models.build(config)
  specs = {name: jax.ShapeDtypeStruct(spec.shape, jnp.bfloat16) for name, spec in model.specs.items()}
  work = workload.of_numbers(2, 8, 17, 4)
  made = program.Job(model, specs, 4, "task_arithmetic", work, mesh, 1, False, Evals(max_shapes=1))
  return made._replace(**options)


def planned(mesh="", device=SMALL, compiled=True, **options):
  return plan.plan(job(mesh, **options), plan.Search("tiny", 20, device, 1e9, compiled))


@pytest.mark.parametrize(
  ("mesh", "options"),
  [
    ("fsdp:1", {}),
    ("fsdp:8", {}),
    ("fsdp:4,tensor:2", {"method": "linear"}),
    ("candidate:2,fsdp:4", {"checkpoints": 8}),
    ("fsdp:2", {"batch": 2, "in_turn": True}),
  ],
)
def test_bytes_are_those_of_the_compiled_program(mesh, options):
  made = planned(mesh, **options)
  expected = made["parameter_bytes_per_device"] + made["data_bytes_per_device"]
  assert made["argument_bytes_per_device"] == expected
  assert made["output_bytes_per_device"] == 4 * 4 * 16 * made["batch"]  # four numbers of sixteen examples
  assert bool(made["collectives"]) == (mesh != "fsdp:1")


def test_bytes_are_those_of_a_real_pool(tmp_path):
  paths, tasks = pools.make_pool(tmp_path / "pool", 2), pools.make_tasks(tmp_path / "tasks", 12)
  values = {
    "checkpoints": tuple(map(str, paths)),
    "tasks": tuple(map(str, tasks)),
    "output_dir": str(tmp_path),
  }
  problem = recycle.build(settings.from_mapping(values | {"placement": {"mesh": "fsdp:4"}}))
  placed = pool.place(problem).merges["task_arithmetic"].source
  used = dict.fromkeys(problem.layout.mesh.devices.flat, 0)
  for array in jax.tree.leaves(placed.leaves):
    for shard in array.addressable_shards:
      used[shard.device] += shard.data.nbytes
  model = models.build(pools.CONFIG)
  made = planned("fsdp:4", config=pools.CONFIG, compiled=False, checkpoints=2, specs=model.specs)
  assert set(used.values()) == {made["parameter_bytes_per_device"]}


def test_operations_are_two_a_parameter_and_token_and_those_of_attention():
  built = program.build(given := job("fsdp:1"))
  done = costs.work(given, built)
  c = given.model.config
  rows, length, asked = 16, 16, 4
  layer = 4 * 32 * 32 // 4 * 3 + 3 * 32 * 48  # q and o [32, 32], k and v [16, 32], three of the feed-forward
  tokens = rows * (length * (c.num_layers - 1) + asked)
  expected = 2 * layer * tokens + 4 * 32 * length * tokens + 2 * 32 * 96 * rows * asked
  assert done.evaluation_flops == expected
  assert done.merge_flops == 2 * 5 * sum(math.prod(s.shape) for s in given.specs.values())


def test_branches_and_generated_texts_are_planned(tmp_path):
  (tmp_path / "tokenizer.json").write_text(puzzles.tokenizer().to_str())
  choose = pools.make_tasks(tmp_path, 20)[1]
  header = {"options": {"metric": "generate_match", "max_tokens": 5, "stop": [";"]}}
  lines = [header, *({"prompt": f"say {i}:", "target": "no"} for i in range(20))]
  (tmp_path / "say.jsonl").write_text("\n".join(map(json.dumps, lines)))
  specs, fractions = [str(choose), str(tmp_path / "say.jsonl")], (1.0, 0.0, 0.0)
  work = workload.of_files(specs, tmp_path, 97, 64, fractions)
  made = planned("fsdp:2", config=TINY | {"vocab_size": 97}, workload=work)
  assert (
    made["argument_bytes_per_device"] == made["parameter_bytes_per_device"] + made["data_bytes_per_device"]
  )
  said = len(work.tasks[1].examples)
  pointers = 2 * 8  # of a tuple
  assert made["output_bytes_per_device"] == 4 * 4 * work.examples + 4 * 5 * said + pointers
  prompts = sum(start for start, count in zip(*_first(work.rows), strict=True) if count > 1)
  texts = sum(start for start, count in zip(*_first(work.rows), strict=True) if count == 1)
  ends = sum(len(ids) - 1 - start for ids, start in zip(work.rows.ids, work.rows.starts, strict=True))
  assert made["tokens_per_candidate"] == prompts + ends + 2 * texts + 5 * said
  silent = planned(
    "fsdp:2", config=TINY | {"vocab_size": 97}, workload=work._replace(tokens=None), compiled=False
  )
  assert made["bytes_per_candidate"] > 2 * silent["bytes_per_candidate"]


def _first(rows):
  """Length of the prompt and number of targets of each example."""
  firsts = np.cumsum([0, *rows.targets[:-1]])
  return [rows.starts[i] for i in firsts], rows.targets


def test_of_experts_those_that_are_chosen_count():
  config = models.preset("mixtral-8x7b")
  model = models.build(config)
  specs = {name: jax.ShapeDtypeStruct(spec.shape, jnp.bfloat16) for name, spec in model.specs.items()}
  active = costs._active(job()._replace(model=model, specs=specs))
  head = 2 * config["vocab_size"] * config["hidden_size"]
  assert 12.5e9 < active + head < 13.1e9  # 12.9 billion, as published


def test_what_does_not_fit_is_said_with_what_would():
  made = planned("fsdp:2", compiled=False, checkpoints=20)
  assert not made["fits"] and made["bytes_per_device"] > made["usable_bytes_per_device"]
  text = plan.text(made)
  assert "DOES NOT FIT" in text and "--num_devices=" in text and "--pool_memory=host" in text
  more = next(line for line in made["advice"] if "--num_devices=" in line)
  count = int(more.split("=")[1].split()[0])
  assert planned(f"fsdp:{count}", compiled=False, checkpoints=20)["fits"]
  fewer = int(next(line for line in made["advice"] if "checkpoints would fit" in line).split()[0])
  assert planned("fsdp:2", compiled=False, checkpoints=fewer)["fits"]
  assert not planned("fsdp:2", compiled=False, checkpoints=fewer + 2)["fits"]


def test_candidates_side_by_side_hold_the_pool_as_often():
  one, two = planned("fsdp:4", compiled=False), planned("candidate:2,fsdp:4", compiled=False)
  assert two["parameter_bytes_per_device"] == one["parameter_bytes_per_device"]  # on twice as many devices
  assert any("holds the pool 2 times" in line for line in two["advice"])


def test_candidates_side_by_side_take_as_long_as_one_on_all_devices():
  one, four = (planned(mesh, compiled=False) for mesh in ("fsdp:8", "candidate:4,fsdp:2"))
  assert four["flops_per_candidate"] == one["flops_per_candidate"]
  np.testing.assert_allclose(four["merge_seconds"], one["merge_seconds"])
  fast = SMALL._replace(flops=1e9)  # bound by operations
  one, four = (planned(mesh, fast, compiled=False) for mesh in ("fsdp:8", "candidate:4,fsdp:2"))
  np.testing.assert_allclose(four["evaluation_seconds"], one["evaluation_seconds"])


@pytest.mark.parametrize(
  ("mesh", "advised"), [("fsdp:8", "fsdp:2,tensor:4"), ("candidate:2,fsdp:4", "candidate:2,tensor:4"),
                        ("candidate:4,fsdp:2", None), ("fsdp:4", None)],
)  # fmt: skip
def test_an_advised_mesh_is_one(mesh, advised):
  found = [line for line in planned(mesh, compiled=False)["advice"] if "within a host" in line]
  assert [line.split("--mesh=")[1].split()[0] for line in found] == ([advised] if advised else [])


def test_what_is_gathered_is_two_layers_or_the_embedding():
  small, large = job("fsdp:4"), job("fsdp:4", TINY | {"vocab_size": 9600})
  layer = 2 * (4 * 32 * 32 // 4 * 3 + 3 * 32 * 48 + 2 * 32)  # bfloat16, two norms
  assert costs._gathered(small, program.build(small).layout.mesh) == 2 * layer
  assert costs._gathered(large, program.build(large).layout.mesh) == 2 * 9600 * 32


def test_activations_of_experts_are_about_what_the_compiler_takes():
  config = models.preset("qwen3-30b-a3b") | {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "moe_intermediate_size": 1536,
    "head_dim": 32, "num_experts": 16, "num_hidden_layers": 9, "num_attention_heads": 4,
    "num_key_value_heads": 2,
  }  # fmt: skip
  given = job("fsdp:1", config, checkpoints=2, workload=workload.of_numbers(2, 64, 65, 8))
  given = given._replace(specs=dict(given.model.specs))
  built = program.build(given)
  held, compiled = costs.memory(given, built), program.compile(given, built)
  assert 0.8 < compiled.temporaries / (held.merged + held.activations) < 1.06


def test_time_follows_the_roofline():
  slow = planned("fsdp:2", compiled=False)
  fast = planned("fsdp:2", SMALL._replace(flops=1e13, float32=1e13, bandwidth=1e12), compiled=False)
  np.testing.assert_allclose(slow["seconds_per_candidate"], 10 * fast["seconds_per_candidate"])
  assert slow["device_hours"] == 2 * slow["seconds"] / 3600
  assert slow["disk_seconds"] == slow["disk_bytes"] / 1e9
  for mesh, share in (("fsdp:8", 2), ("candidate:2,fsdp:4", 1), ("data:2,fsdp:4", 1), ("candidate:8", 1)):
    made = planned(mesh, compiled=False)  # on two hosts
    assert made["disk_seconds"] == made["disk_bytes"] / 1e9 / share, mesh
  assert planned("fsdp:2", compiled=False, checkpoints=6)["merge_seconds"] > slow["merge_seconds"]


def test_a_plan_of_the_job(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(TINY))
  words = [f"--config_json={tmp_path / 'config.json'}", "--num_checkpoints=4", "--num_devices=5",
           "--length=64", "--mesh=fsdp:4"]  # fmt: skip
  code, out, errors = launch("plan", *words, "--device=cpu", f"--output={tmp_path / 'plan.json'}")
  assert code == 0, errors
  made = json.loads((tmp_path / "plan.json").read_text())
  assert made["fits"] and made["devices"] == 4 and made["seconds_per_candidate"] > 0
  assert "candidate" in out and "4 checkpoints and a base on 4 cpu" in out
  assert "leaves 1 of 5 devices idle" in out


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ((), "Give one of --config_json"),
    (("--preset=llama-3-9b",), "did you mean 'llama-3-8b'"),
    further(("--preset=llama-3-8b", "--device=h10"), "did you mean 'h100'"),
    (("--preset=llama-3-8b", "--mesh=fsdp:16"), "needs 16 devices; there are 8"),
    further(("--preset=llama-3-8b", "--method=line"), "did you mean 'linear'"),
    further(("--preset=llama-3-8b", "--length=8", "--target_length=8"), "--target_length is 8"),
    further(("--preset=llama-3-8b", "--length=8193"), "--length is 8193; llama-3-8b takes 8192"),
    further(("--preset=llama-3-8b", "--examples=1000000"), "make 514000000 tokens; expected at most"),
    (("--preset=llama-3-8b", f"--budget={10**400}"), "--budget=1000"),
    further(("--preset=llama-3-8b", "--disk_gb_per_second=nan"), "--disk_gb_per_second is nan"),
  ],
)
def test_plans_of_what_cannot_be_are_one_sentence(words, message):
  code, _, errors = launch("plan", *words)
  assert code == 1 and message in errors and len(errors.strip().splitlines()) == 1


def test_devices_have_what_a_roofline_needs():
  for device in devices.DEVICES.values():
    assert all(value > 0 for value in device[1:])
    assert 50 < device.flops / device.bandwidth < 1000 and device.float32 < device.flops / 5
