# What every sanity.sh begins with: `source tiny.sh FOLDER` makes the folder, `out`, and `tiny`, overrides that make any
# configuration a matter of seconds on a CPU; the example's own folder is where its commands run.
# shellcheck shell=bash disable=SC2034
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd) || exit
cd "$(dirname "$0")" || exit
# Two parts of a compressed FASTA as a genome of two sequences, the second of the name given: genome FILE NAME
genome() {
  { gzip -dc "$1" | sed '401,$d'; echo ">$2"; gzip -dc "$1" | tail -n 300; } > "$out/genome.fa"
}
tiny=(
  model.hidden_size=64 model.layers=2 model.heads=2 model.intermediate_size=64 model.context=64
  train.global_batch_tokens=1024 train.micro_batch_tokens=1024 train.steps=3 train.device=cpu train.precision=fp32
  evaluation.windows=8 checkpoint.every=3
)
