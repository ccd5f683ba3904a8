#!/usr/bin/env bash
# One machine, several GPUs (or CPU processes). The same run as on one device: the global batch does not change.
#   launch/multi_gpu.sh PROCESSES CONFIG [KEY=VALUE...]
#   launch/multi_gpu.sh 8 base data.path=DATA train.engine=zero1
# Needs: dnascale on PATH; for train.engine=zero1, zero2 or zero3 also dnascale[deepspeed].
# Not measured yet on GPUs.
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
PROCESSES=$1
shift
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( $(getconf _NPROCESSORS_ONLN) / PROCESSES > 0 ? $(getconf _NPROCESSORS_ONLN) / PROCESSES : 1 ))}"
exec torchrun --nproc-per-node "$PROCESSES" --rdzv-backend c10d --rdzv-endpoint localhost:0 -m dnascale.train "$@"
