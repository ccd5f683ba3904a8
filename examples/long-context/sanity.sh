#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
source "$(dirname "$0")/../tiny.sh" "$@"

# Human chromosome 20 stands for the fly.
dnascale prepare ../../tests/data/human_chr20.fa.gz --soft-mask --max-n-run 20 --valid 0 --out "$out/data"
dnascale train train.yaml data.path="$out/data" run.dir="$out/run" "${tiny[@]}" \
  'schedule.stages=[{tokens: 1024, context: 16, masking_rate: 0.3}, {tokens: 1024, context: 32}, {}]'
