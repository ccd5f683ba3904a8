#!/usr/bin/env bash
# The main job, end to end, on this machine: real human coding sequences to a trained, evaluated, exported model.
# Needs: any CPU. Takes: three minutes of training and one of everything else. Makes: demo/data, demo/run, demo/model.
set -euo pipefail
MINUTES=${MINUTES:-3}

# What was finished is made anew; what was interrupted goes on.
if [ -e demo/model ]; then rm -rf demo/data demo/run demo/model; fi
echo "== 1. sequences to shards"
[ -e demo/data ] || dnascale prepare builtin:human-cds --cluster 0.2 --out demo/data

echo "== 2. train for about $MINUTES minutes"
dnascale train nano data.path=demo/data run.dir=demo/run train.minutes="$MINUTES" train.device=cpu

echo "== 3. held-out genes, beside baselines fitted on the same training genes"
dnascale eval demo/run --device cpu

echo "== 4. a plain Hugging Face folder"
dnascale export demo/run demo/model

cat <<'END'

data    demo/data     tar shards that any WebDataset reader reads
run     demo/run      configuration, metrics.jsonl, checkpoints, evaluation
model   demo/model    AutoModelForMaskedLM.from_pretrained("demo/model")

Try next:
  .venv/bin/dnascale train nano data.path=demo/data run.dir=demo/longer train.minutes=20
  .venv/bin/dnascale train mini data.path=demo/data run.dir=demo/mini train.minutes=45
  PATH=.venv/bin:$PATH launch/multi_gpu.sh 2 nano data.path=demo/data run.dir=demo/two train.minutes=3 train.device=cpu
END
