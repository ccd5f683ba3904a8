#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
source "$(dirname "$0")/../tiny.sh" "$@"

# An excerpt of chromosome I, and a second chromosome made of another part of it.
genome ../../tests/data/yeast_chrI.fa.gz chrIV
dnascale prepare "$out/genome.fa" --group chromosome --valid chrIV --max-leakage 1 --out "$out/data"
dnascale train train.yaml data.path="$out/data" run.dir="$out/run" "${tiny[@]}"
dnascale eval "$out/run" --device cpu
