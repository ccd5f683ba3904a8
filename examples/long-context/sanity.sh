#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
source "$(dirname "$0")/../tiny.sh" "$@"

# Two parts of human chromosome 20 stand for the fly.
genome ../../tests/data/human_chr20.fa.gz chr4
dnascale prepare "$out/genome.fa" --soft-mask --group chromosome --valid chr4 --min-length 1000 --max-n-run 100 --out "$out/data"
dnascale train train.yaml data.path="$out/data" run.dir="$out/run" "${tiny[@]}" \
  'schedule.stages=[{tokens: 1024, context: 16, masking_rate: 0.3}, {tokens: 1024, context: 32}, {}]'
dnascale eval "$out/run" --device cpu
