#!/usr/bin/env bash
# The steps of this example on sequences of the repository, with a tiny model: sanity.sh FOLDER
set -euo pipefail
source "$(dirname "$0")/../tiny.sh" "$@"

# Two species stand for three: yeast genes of the excerpt, and human ones.
cat > "$out/recipe.yaml" <<END
sources:
  human: {inputs: "builtin:human-cds"}
  yeast: {inputs: "$PWD/../../tests/data/yeast_chrI.cds.fasta.gz"}
options: {valid_cds: true, cluster: 0.2, valid: 0.2}
temperature: 2
END
dnascale prepare "$out/recipe.yaml" --out "$out/data"
dnascale train train.yaml data.path="$out/data" run.dir="$out/run" "${tiny[@]}"
dnascale data inspect "$out/data"
