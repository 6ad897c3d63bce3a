"""Scores candidates by what vLLM generates: one engine, whose weights are replaced by each candidate's.

    JAX_PLATFORMS=cpu python -m launch.recycle --checkpoints=a,b,c --output_dir=runs/x --tasks=gsm,code \\
      --scorer_command="python examples/vllm_scorer.py --tasks=gsm.jsonl,code.jsonl \\
      {model_dir} {scores_json} {split}"

Task files are those of `launch.recycle` with `generate_match` (README), divided as it divides them; a score
has the name of its file. `--memory` is the engine's share of the GPU; the job may merge on the CPU, as above,
or on what is left. Needs a vLLM whose workers take `reload_weights(weights_path=…)`; tested by a fake.
"""

import argparse
import os

import resident


def load(options: argparse.Namespace) -> resident.Score:
  """Reads the task files once; the engine starts with the first candidate."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # the GPU is the engine's
  from merge_jax.evals import splits, tasks

  files = tasks.load_all(options.tasks.split(","))
  parts = splits.split(files).tasks
  engine = None

  def score(model_dir: str, split: str) -> dict[str, list[bool]]:
    nonlocal engine
    if engine is None:
      from vllm import LLM

      engine = LLM(
        model=model_dir, dtype=options.dtype, gpu_memory_utilization=options.memory,
        tensor_parallel_size=options.gpus,
      )  # fmt: skip
    else:
      engine.collective_rpc("reload_weights", kwargs={"weights_path": model_dir})
      engine.reset_prefix_cache()  # its keys and values are those of other weights
    return {task.name: right(engine, task) for task in parts[split]}

  return score


def right(engine, task) -> list[bool]:
  """Of which examples the greedy text has the right answer: gains then have errors."""
  from vllm import SamplingParams

  from merge_jax.evals import replies

  options = task.options
  sampling = SamplingParams(temperature=0.0, max_tokens=options.max_tokens, stop=list(options.stop) or None)
  if options.chat:
    first = [{"role": "system", "content": options.system}] if options.system else []
    for shot in options.shots:
      first += [{"role": "user", "content": shot.prompt}, {"role": "assistant", "content": shot.target}]
    asked = [[*first, {"role": "user", "content": example.prompt}] for example in task.examples]
    outputs = engine.chat(asked, sampling)
  else:
    before = "".join(shot.prompt + shot.target + options.separator for shot in options.shots)
    outputs = engine.generate([before + example.prompt for example in task.examples], sampling)
  return [
    replies.agrees(output.outputs[0].text, example.targets[example.answer], options)
    for output, example in zip(outputs, task.examples, strict=True)
  ]


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tasks", required=True, help="task files, separated by commas")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--memory", type=float, default=0.8, help="share of the GPU's memory")
  parser.add_argument("--gpus", type=int, default=1)
  resident.main(parser, load)
