"""Scripts for clusters, as far as one machine can try them: their words, their loops, their fields."""

import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import merge_jax
from tests import merging
from tests.processes import ROOT

HOMES = (ROOT / "launch", Path(merge_jax.__file__).parent / "launch")  # a clone, the wheel
PODS = next(home / "pods" for home in HOMES if (home / "pods").is_dir())
SCRIPTS = sorted(PODS.glob("*.sh"))


def tool(folder, name, text):
  """A command in the place of one that is not here."""
  file = folder / name
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(f"#!/usr/bin/env bash\n{text}")
  file.chmod(0o755)


def run(script, *words, folder, **environment):
  inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "SLURM_RESTART_COUNT")}
  path = f"{folder}/bin:{os.environ['PATH']}"
  return subprocess.run(
    [PODS / script, *words], cwd=folder, text=True, capture_output=True, timeout=120, check=False,
    env=inherited | {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
  )  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
  check = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  command = [check] if check else ["bash", "-n"]
  done = subprocess.run([*command, script], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and os.access(script, os.X_OK)


# What srun does, for two processes on this machine: JAX reads the rest from SLURM's environment.
SRUN = """
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & processes[i]=$!; done
worst=0
for process in "${processes[@]}"; do
  status=0; wait "$process" || status=$?
  if ((status > worst)); then worst=$status; fi
done
exit "$worst"
"""


def test_slurm_starts_processes_that_find_one_another(tmp_path):
  merging.make(tmp_path)
  (tmp_path / "my recipe.yml").write_text("method: linear\nmodels: [a, b]\n")
  tool(tmp_path / "bin", "srun", SRUN)
  flags = ("--recipe=my recipe.yml", "--output_dir=out", "--heartbeat=5")
  job = {"JOB": "merge", "SLURM_JOB_ID": str(random.randrange(1 << 20)), "PYTHON": sys.executable}
  done = run("slurm.sh", *flags, folder=tmp_path, **job)
  assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("tensors") == 2, done
  assert (tmp_path / "out" / "model.safetensors").is_file()
  done = run("slurm.sh", *flags, folder=tmp_path, **job)  # an error is no reason to begin again
  assert done.returncode == 1 and done.stdout == "" and "process 1: error: process 0: " in done.stderr, done


@pytest.mark.parametrize(
  ("status", "restarts", "again"), [(75, 0, True), (134, 19, True), (75, 20, False), (1, 0, False)]
)
def test_slurm_queues_again_what_was_stopped(tmp_path, status, restarts, again):
  expected = "python -m merge_jax recycle --distributed --x=1"
  tool(tmp_path / "bin", "srun", f'[[ "$*" == *"{expected}" ]] && exit {status}')
  tool(tmp_path / "bin", "scontrol", 'echo "scontrol $*"')
  job = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(restarts), "PYTHON": "python"}
  done = run("slurm.sh", "--x=1", folder=tmp_path, **job)
  assert done.returncode == status and ("scontrol requeue 77" in done.stdout) == again


# What gcloud does, for as many workers as a line of the file has statuses.
GCLOUD = """
echo "$*" >> calls
command=${*: -1}
read -r line < statuses && sed -i 1d statuses
for status in $line; do STATUS=$status bash -c "${command#--command=}"; done
"""


@pytest.mark.parametrize(
  ("statuses", "status", "runs"), [(["75 75", "0 0"], 0, 2), (["0 1", "0 0"], 1, 1), (["75 137"] * 3, 75, 3)]
)
def test_tpu_workers_start_again_until_they_are_done(tmp_path, statuses, status, runs):
  (tmp_path / "statuses").write_text("".join(f"{line}\n" for line in statuses))
  tool(tmp_path / "bin", "gcloud", GCLOUD)
  tool(tmp_path / "my clone" / ".venv" / "bin", "python", 'printf "[%s]" "$@"; echo; exit "$STATUS"')
  job = {"NAME": "slice", "ZONE": "zone", "CLONE": "my clone", "PAUSE": "0", "MAX_RESTARTS": "2"}
  done = run("tpu_vm.sh", "--output_dir=a b", "--tasks=$x", folder=tmp_path, **job)
  assert done.returncode == status, done
  assert (
    done.stdout.count("[-m][merge_jax][recycle][--distributed][--output_dir=a b][--tasks=$x]") == 2 * runs
  )
  calls = (tmp_path / "calls").read_text()
  assert calls.count("compute tpus tpu-vm ssh slice --zone=zone --worker=all --command=cd ") == runs


def find(value, key):
  """All values of a key in nested YAML."""
  if isinstance(value, dict):
    yield from (v for k, v in value.items() if k == key)
  for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
    yield from find(inner, key)


FIELDS = {
  "": {"apiVersion": str, "kind": str, "metadata": dict, "spec": dict},
  "spec": {"network": dict, "failurePolicy": dict, "replicatedJobs": list},
  "spec.failurePolicy": {"maxRestarts": int, "rules": list},
  "spec.replicatedJobs.0": {"name": str, "replicas": int, "template": dict},
  "spec.replicatedJobs.0.template": {"spec": dict},
  "spec.replicatedJobs.0.template.spec": {
    "parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int,
    "podFailurePolicy": dict, "template": dict,
  },
  "spec.replicatedJobs.0.template.spec.template.spec": {
    "restartPolicy": str, "terminationGracePeriodSeconds": int, "nodeSelector": dict, "containers": list,
    "volumes": list,
  },
  "spec.replicatedJobs.0.template.spec.template.spec.containers.0": {
    "name": str, "image": str, "command": list, "args": list, "ports": list, "resources": dict,
    "volumeMounts": list,
  },
}  # fmt: skip


@pytest.mark.parametrize("name", ["gke_gpu", "gke_tpu"])
def test_job_sets_have_the_fields_of_the_api_and_agree_with_themselves(name):
  job_set = yaml.safe_load((PODS / f"{name}.yaml").read_text())
  found = {}
  for path, fields in FIELDS.items():
    value = job_set
    for part in filter(None, path.split(".")):
      value = value[int(part) if part.isdecimal() else part]
    assert {key: type(inner) for key, inner in value.items()} == fields, path
    found[path.rpartition(".")[2]] = value
  assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  job = job_set["spec"]["replicatedJobs"][0]
  spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  (codes,) = find(spec["podFailurePolicy"], "onExitCodes")
  assert codes == {"containerName": container["name"], "operator": "In", "values": [1]}
  assert (pod["restartPolicy"], spec["backoffLimit"], spec["completionMode"]) == ("Never", 0, "Indexed")
  assert {volume["name"] for volume in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}
  assert all(isinstance(word, str) for word in (*container["command"], *container["args"]))
  ((chip, chips),) = container["resources"]["limits"].items()
  assert spec["parallelism"] == spec["completions"] and type(chips) is int
  flags = dict(re.match(r"--(\w+)=?(.*)", word).groups() for word in container["args"])
  if name == "gke_tpu":
    side = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert chip == "google.com/tpu" and math.prod(map(int, side)) == chips * spec["parallelism"]
    assert "coordinator" not in flags
  else:
    host, port = flags["coordinator"].split(":")
    first = f"{job_set['metadata']['name']}-{job['name']}-0-0.{job_set['metadata']['name']}"
    assert (host, int(port)) == (first, container["ports"][0]["containerPort"])
    assert chip == "nvidia.com/gpu" and int(flags["num_processes"]) == spec["parallelism"]
    command = [*container["command"], *container["args"]]
    command[2] = command[2].replace("exec python", "printf '[%s]'")
    environment = {"JOB_COMPLETION_INDEX": "1", "PATH": os.environ["PATH"]}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("[-m][merge_jax][recycle][--process_id=1][--distributed][--coordinator=")
