#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
source "$(dirname "$0")/../tiny.sh" "$@"

dnascale prepare builtin:human-cds --out "$out/letters"
dnascale prepare builtin:human-cds --tokenizer kmer:4 --out "$out/kmers"
dnascale tokenizer train "$out/letters" --vocab-size 300 --max-bases 200000 --out "$out/tok"
dnascale prepare builtin:human-cds --tokenizer "$out/tok" --out "$out/learned"
for data in letters kmers learned; do
  dnascale train train.yaml data.path="$out/$data" run.dir="$out/runs/$data" "${tiny[@]}"
  dnascale eval "$out/runs/$data" --device cpu
done
