#!/usr/bin/env bash
# A PC with one NVIDIA card of 8, 12 or 24 GB (RTX 3060 to 4090), Linux or WSL 2.
#
#   launch/gaming_gpu.sh book data.path=data run.dir=runs/book   DRY_RUN=1 only prints the command
#   GPU_GB=12 launch/gaming_gpu.sh base data.path=data           asks nvidia-smi when GPU_GB is not set
#
# Needs  a driver that your torch supports (dnascale doctor tells), Python 3.11 or newer, pip install -e .
# Takes  the book's run (two epochs of 500,000 coding sequences of 13 vertebrates, 512 tokens each): its author needed 10 to 12 h with his script on a gaming
#        GPU. dnascale has not been timed on such a card yet; the progress bar says after a minute what yours will need.
# Costs  power: 0.2 to 0.45 kW while it runs.
#
# Started again after anything, the same command goes on from the last checkpoint.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

if [ -z "${GPU_GB:-}" ]; then
  mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits --id=0) || {
    echo "gaming_gpu.sh: nvidia-smi does not answer: is the driver installed? Or say GPU_GB=8, 12 or 24." >&2
    exit 2
  }
  GPU_GB=$(((mib + 512) / 1024))
fi
if [ "$GPU_GB" -ge 24 ]; then card=24; elif [ "$GPU_GB" -ge 12 ]; then card=12; else card=8; fi

# Tokens of one forward pass that fit (estimated from runs on an H200). The global batch stays what the preset says, so the run is
# the same one on every card. Your own train.micro_batch_tokens=... wins; =auto tries what fits.
case "$1:$card" in
  nano:* | mini:*) micro=2048 ;;
  book:*) micro=16384 ;;
  small:8) micro=16384 ;;
  small:*) micro=32768 ;;
  base:24) micro=32768 ;;
  base:*) micro=8192 ;;
  large:24) micro=8192 ;;
  large:12) micro=2048 ;;
  large:8) echo "gaming_gpu.sh: large does not fit into 8 GB; base does." >&2; exit 2 ;;
  *) micro= ;;  # your own YAML file says it
esac

export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"  # less memory lost in gaps
config=$1
shift
command=(dnascale train "$config" ${micro:+"train.micro_batch_tokens=$micro"} "$@")

[ -z "${DRY_RUN:-}" ] || { printf '%q ' "${command[@]}"; echo; exit; }
exec "${command[@]}"
