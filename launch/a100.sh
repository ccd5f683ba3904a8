#!/usr/bin/env bash
# One A100 (40 or 80 GB), H100 or H200: a cloud machine, or one GPU of a node.
#
#   launch/a100.sh base data.path=data run.dir=runs/base         DRY_RUN=1 only prints the command
#   GPU_GB=80 launch/a100.sh large data.path=data                asks nvidia-smi when GPU_GB is not set
#
# Needs  Python 3.11 or newer, pip install -e .; nothing else: the fast attention is torch's own.
# Takes  the book's run (two epochs of 500,000 coding sequences of 13 vertebrates, 512 tokens each): its author needed about 6 h with his script on a Colab
#        A100. dnascale has not been timed on an A100 yet. Measured on an H200 (docs/benchmarks/step.md): base over windows of 8,192
#        trains 280,000 tokens/s, large over 1,024 181,000, so 10^10 tokens take 9.9 and 15.3 h there.
# Costs  the hours times your provider's price. On a machine that may be taken away: slurm.sbatch, or start this again.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

if [ -z "${GPU_GB:-}" ]; then
  mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits --id=0) || {
    echo "a100.sh: nvidia-smi does not answer: is the driver installed? Or say GPU_GB=40 or 80." >&2
    exit 2
  }
  GPU_GB=$(((mib + 512) / 1024))
fi
if [ "$GPU_GB" -ge 79 ]; then card=80; else card=40; fi

# Tokens of one forward pass that fit (estimated from runs on an H200). The global batch stays what the preset says. Your own
# train.micro_batch_tokens=... wins; =auto tries what fits.
case "$1:$card" in
  nano:* | mini:*) micro=2048 ;;
  book:*) micro=16384 ;;
  small:*) micro=32768 ;;
  base:80) micro=65536 ;;
  base:40) micro=32768 ;;
  large:80) micro=32768 ;;
  large:40) micro=16384 ;;
  *) micro= ;;  # your own YAML file says it
esac

config=$1
shift
command=(dnascale train "$config" ${micro:+"train.micro_batch_tokens=$micro"} "$@")

[ -z "${DRY_RUN:-}" ] || { printf '%q ' "${command[@]}"; echo; exit; }
exec "${command[@]}"
