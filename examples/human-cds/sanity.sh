#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
source ../tiny.sh

dnascale prepare builtin:human-cds --valid-cds --out "$out/data"
dnascale train train.yaml data.path="$out/data" run.dir="$out/run" "${tiny[@]}"
dnascale eval "$out/run" --device cpu
dnascale export "$out/run" "$out/model"
