#!/usr/bin/env bash
# Trains on several GPUs (or CPU processes) of one machine or more, by torchrun:
#   tools/dist_train.sh CONFIG NUM_PROCESSES [options of tools/train.py]
# On several machines, set NNODES, NODE_RANK, MASTER_ADDR and PORT on each. With MAX_RESTARTS=3, all
# processes start again, up to three times, if one dies, and resume from the last checkpoint.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
config=$1 processes=$2
shift 2
# torchrun passes these on; SIGUSR1 would kill it otherwise, and leave the processes.
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
meeting=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$port")
# torchrun would give each process one thread; on CPUs that leaves cores idle.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}"
# Restarted processes must not find the addresses of the dead ones: they get a store of their own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
[ "${MAX_RESTARTS:-0}" -eq 0 ] || meeting=(--rdzv-backend=c10d --rdzv-endpoint="$address:$port")
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" "${meeting[@]}" \
  --nproc_per_node="$processes" --max-restarts="${MAX_RESTARTS:-0}" \
  "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
