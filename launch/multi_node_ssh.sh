#!/usr/bin/env bash
# Several machines that you reach by ssh, without a scheduler.
#
#   launch/multi_node_ssh.sh HOST,HOST CONFIG [KEY=VALUE...]      DRY_RUN=1 only prints the commands
#   launch/multi_node_ssh.sh gpu1,gpu2 base data.path=/shared/data run.dir=/shared/runs/base
#
# Needs  ssh to every host without a password; dnascale, data.path, run.dir and this folder at the same path on every host (a shared
#        file system); port 29500 of the first host open to the others (PORT=... for another).
# Takes  not measured on several machines yet. The global batch does not change with their number.
# Costs  the hours times the price of the machines.
#
# If a host is lost, the others stop within a minute and say which it was. The run then starts again on the hosts that still answer, with
# the same global batch, up to RETRIES times (3). Secrets come from the environment of each host: none is sent over.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
IFS=, read -r -a hosts <<< "$1"
shift
port=${PORT:-29500}
ssh=(ssh -tt -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 -o ServerAliveCountMax=4)
program=${DNASCALE:-$(command -v dnascale)} || { echo "multi_node_ssh.sh: dnascale is not on PATH" >&2; exit 2; }

# The command for a host: same folder, same program, every word quoted for the shell over there.
remote() {
  local nodes=$1 rank=$2
  shift 2
  printf 'cd %q && exec ' "$PWD"
  printf '%q ' "$program" launch --nodes "$nodes" --node-rank "$rank" --port "$port" \
    ${PROCESSES:+--processes "$PROCESSES"} ${LOST_AFTER:+--lost-after "$LOST_AFTER"} "$@"
}

# Starts the run on all of `hosts`, each line of output with its host in front. The first exit code that is not 0.
run_once() {
  local nodes pids=() code=0 one rank
  nodes=$(IFS=,; echo "${hosts[*]}")
  for rank in "${!hosts[@]}"; do
    "${ssh[@]}" "${hosts[rank]}" "$(remote "$nodes" "$rank" "$@")" < /dev/null > >(sed -u "s/^/${hosts[rank]}: /") 2>&1 &
    pids+=($!)
  done
  trap 'kill "${pids[@]}" 2> /dev/null; exit 130' INT TERM
  for rank in "${!pids[@]}"; do
    wait "${pids[rank]}"
    one=$?
    [ "$code" -ne 0 ] || code=$one
  done
  trap - INT TERM
  return "$code"
}

if [ -n "${DRY_RUN:-}" ]; then
  for rank in "${!hosts[@]}"; do
    printf '%s: %s\n' "${hosts[rank]}" "$(remote "$(IFS=,; echo "${hosts[*]}")" "$rank" "$@")"
  done
  exit
fi

for try in $(seq 0 "${RETRIES:-3}"); do
  run_once "$@"
  code=$?
  # 7 and 255 (of ssh itself): a host or a process was lost. Everything else would happen again.
  if [ "$code" -ne 7 ] && [ "$code" -ne 255 ]; then break; fi
  answering=()
  for host in "${hosts[@]}"; do
    if "${ssh[@]}" "$host" true < /dev/null > /dev/null 2>&1; then answering+=("$host"); else echo "multi_node_ssh.sh: $host does not answer"; fi
  done
  [ "${#answering[@]}" -gt 0 ] && [ "$try" -lt "${RETRIES:-3}" ] || break
  hosts=("${answering[@]}")
  echo "multi_node_ssh.sh: once more, on ${hosts[*]}"
done
exit "$code"
