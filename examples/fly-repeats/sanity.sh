#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
source ../tiny.sh

# Human chromosome 20 stands for the fly.
dnascale prepare ../../tests/data/human_chr20.fa.gz --soft-mask --max-n-run 20 --valid 0 --out "$out/data"
dnascale train train.yaml data.path="$out/data" run.dir="$out/run" "${tiny[@]}"
