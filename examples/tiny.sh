# Overrides that make any configuration a matter of seconds on a CPU: source this, then add "${tiny[@]}".
# shellcheck shell=bash disable=SC2034
tiny=(
  model.hidden_size=64 model.layers=2 model.heads=2 model.intermediate_size=64 model.context=64
  train.global_batch_tokens=1024 train.micro_batch_tokens=1024 train.steps=3 train.device=cpu train.precision=fp32
  evaluation.windows=8 checkpoint.every=3
)
