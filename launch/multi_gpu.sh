#!/usr/bin/env bash
# One machine, several GPUs (2 to 8), or several processes on its CPU.
#
#   launch/multi_gpu.sh PROCESSES CONFIG [KEY=VALUE...]           DRY_RUN=1 only prints the command
#   launch/multi_gpu.sh 8 base data.path=data run.dir=runs/base
#
# Needs  dnascale on PATH. For train.engine=zero1, zero2 or zero3 also pip install -e '.[deepspeed]'.
# Takes  not measured on several GPUs yet. The global batch does not change: it is the run of one device, divided.
# Costs  the hours times the price of the machine.
#
# DistributedDataParallel is the default and right for all presets. ZeRO divides the optimizer's state (zero1), gradients too
# (zero2), weights too (zero3) over the GPUs, for models whose 16 bytes a parameter do not fit on each of them.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
processes=$1
shift

cores=$(getconf _NPROCESSORS_ONLN)
threads=$((cores / processes > 0 ? cores / processes : 1))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"

# train.processes refuses half a start.
command=(torchrun --nproc-per-node "$processes" --rdzv-backend c10d --rdzv-endpoint localhost:0
  -m dnascale.train "$@" "train.processes=$processes")

[ -z "${DRY_RUN:-}" ] || { printf '%q ' "${command[@]}"; echo; exit; }
exec "${command[@]}"
