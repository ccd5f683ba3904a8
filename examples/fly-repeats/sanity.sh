#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
source "$(dirname "$0")/../tiny.sh" "$@"

# Two parts of human chromosome 20 stand for the fly.
genome ../../tests/data/human_chr20.fa.gz chr2R
dnascale prepare "$out/genome.fa" --soft-mask --group chromosome --valid chr2R --max-n-run 20 --out "$out/data"
dnascale train train.yaml data.path="$out/data" run.dir="$out/run" "${tiny[@]}"
dnascale eval "$out/run" --device cpu
