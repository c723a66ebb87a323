#!/usr/bin/env bash
# Trains on a slurm cluster:
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS set the allocation. Slurm sends a
# signal SIGNAL_SECONDS (120) before the time limit; training then saves a checkpoint, exits with
# status 75, and is queued again to resume. Use --resume inside of a batch job, which starts anew.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
partition=$1 job=$2 config=$3
shift 3
trap 'exit 75' INT  # Ctrl-C ends this loop as well
while true; do
  status=0
  # shellcheck disable=SC2086  # SRUN_ARGS holds several words
  srun --partition="$partition" --job-name="$job" --gres="gpu:${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    --signal="USR1@${SIGNAL_SECONDS:-120}" ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@" || status=$?
  [ "$status" -eq 75 ] || exit "$status"
  [ -z "${SLURM_JOB_ID:-}" ] || exec scontrol requeue "$SLURM_JOB_ID"
  set -- "$@" --resume
done
