#!/usr/bin/env bash
# A job over several nodes of a SLURM cluster. Submit it from the clone's root, with the job's own flags:
#
#   sbatch --nodes=4 launch/pods/slurm.sh --checkpoints=a,b,c --tasks=code.jsonl --output_dir=/shared/runs/x
#   JOB=merge sbatch --gpus-per-node=0 --ntasks-per-node=1 --cpus-per-task=16 launch/pods/slurm.sh --recipe=ties.yml \
#     --output_dir=/shared/merged   # merges compute on CPUs
#
# The clone, its .venv, the inputs and the output must be on a file system that all nodes share.
# JAX reads from SLURM's environment where process 0 is, and gives each process the GPU of its number on the
# node. For one process that drives all GPUs of a node: sbatch --ntasks-per-node=1, with
# JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7 in the environment.

#SBATCH --job-name=merge_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --time=04:00:00
# The processes are told 3 minutes before the time is over: they finish their record, and exit with status 75.
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail
trap '' TERM # a preemption tells this script, too: it waits for the processes

PYTHON=${PYTHON:-.venv/bin/python}
JOB=${JOB:-recycle}
MAX_RESTARTS=${MAX_RESTARTS:-20}

status=0
# --wait: when one process has ended, the others end by themselves; what does not is killed after 3 minutes.
srun --kill-on-bad-exit=0 --wait=180 "$PYTHON" -m merge_jax "$JOB" --distributed "$@" || status=$?

# 75: stopped, or a process was lost; above 128: killed by a signal. The same command continues.
if [[ $status -eq 75 || $status -gt 128 ]]; then
  if [[ ${SLURM_RESTART_COUNT:-0} -lt $MAX_RESTARTS ]]; then
    echo "slurm.sh: status $status, so the job is queued again (${SLURM_RESTART_COUNT:-0} restarts so far)"
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$status"
