#!/usr/bin/env bash
# Evaluates on several GPUs (or CPU processes) of one machine or more, by torchrun:
#   tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [options of tools/test.py]
# On several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
config=$1 checkpoint=$2 processes=$3
shift 3
# torchrun would give each process one thread; on CPUs that leaves cores idle.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}"
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --nproc_per_node="$processes" \
  "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
