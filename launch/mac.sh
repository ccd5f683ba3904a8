#!/usr/bin/env bash
# A Mac with an M1 or newer: one process on its GPU.
#
#   launch/mac.sh book data.path=data run.dir=runs/book          DRY_RUN=1 only prints the command
#
# Needs  macOS 14 or newer, Python 3.11 or newer, pip install -e . (no DeepSpeed). The GPU shares the Mac's memory: 8 GB are
#        enough for book, 16 GB for base with train.micro_batch_tokens=4096 (estimated).
# Takes  the book's run (two epochs of 500,000 coding sequences of 13 vertebrates, 512 tokens each): its author needed about 24 h with his script on a
#        MacBook. dnascale has not been timed on a Mac yet; the progress bar says after a minute what yours will need.
# Costs  nothing but power: plug it in.
#
# Stop it with Ctrl-C, close the lid, update macOS: the same command goes on from the last checkpoint.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# An operation without a Metal kernel stops the run and is named. PYTORCH_ENABLE_MPS_FALLBACK=1 would run it on the CPU instead.
export PYTORCH_ENABLE_MPS_FALLBACK="${PYTORCH_ENABLE_MPS_FALLBACK:-0}"

# bf16 if this Mac's GPU is faster with it, else fp32 (train.precision). Nothing is compiled unless train.compile says so.
command=(dnascale train "$@")
if command -v caffeinate > /dev/null; then
  command=(caffeinate -i "${command[@]}")  # no sleep while it runs
fi

[ -z "${DRY_RUN:-}" ] || { printf '%q ' "${command[@]}"; echo; exit; }
exec "${command[@]}"
