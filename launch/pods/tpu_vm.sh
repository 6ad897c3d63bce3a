#!/usr/bin/env bash
# A job on all workers of a TPU VM slice, from a machine with gcloud; the job's own flags follow:
#
#   NAME=my-slice ZONE=us-central2-b launch/pods/tpu_vm.sh --checkpoints=a,b --output_dir=/mnt/shared/runs/x
#
# Before, once: the clone with its .venv (./launch/test makes one; then .venv/bin/pip install -e '.[tpu]') at
# $CLONE on every worker, and a file system that all workers mount, for inputs and output. JAX asks the TPU's
# metadata how many workers there are. A slice that is preempted must be made again (a queued resource does).

set -euo pipefail
: "${NAME:?set NAME to that of the TPU VM}" "${ZONE:?set ZONE to that of the TPU VM}"
CLONE=${CLONE:-merge_jax}
JOB=${JOB:-recycle}
MAX_RESTARTS=${MAX_RESTARTS:-20}

# Workers say their status in a line: gcloud has one status for all of them.
remote="cd $(printf %q "$CLONE") && .venv/bin/python -m merge_jax $JOB --distributed $(printf '%q ' "$@")"
remote+='; echo "worker status $?"'

for ((restarts = 0; restarts <= MAX_RESTARTS; restarts++)); do
  log=$(mktemp)
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$remote" 2>&1 | tee "$log" || true
  said=$(sed -n 's/.*worker status \([0-9]*\)$/\1/p' "$log" | sort -u)
  rm -f "$log"
  if [[ $said == 0 ]]; then
    exit 0
  elif grep -qx -e 1 -e 2 <<<"$said"; then # an error that a user can mend; of the flags, or of the job
    exit 1
  fi
  # 75: stopped, or a worker was lost; other statuses, or none: killed, or unreachable. The same command continues.
  echo "tpu_vm.sh: workers ended with ${said//$'\n'/, }; again in ${PAUSE:-30} s" >&2
  sleep "${PAUSE:-30}"
done
exit 75
