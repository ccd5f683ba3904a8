#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
source "$(dirname "$0")/../tiny.sh" "$@"

dnascale prepare builtin:human-cds --valid-cds --out "$out/data"
dnascale train train.yaml data.path="$out/data" run.dir="$out/run" "${tiny[@]}"
dnascale eval "$out/run" --device cpu
dnascale export "$out/run" "$out/model"
