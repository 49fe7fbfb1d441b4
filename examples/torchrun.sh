#!/usr/bin/env bash
# Train on all GPUs of one machine:
#
#   examples/torchrun.sh RUN.yaml OUTPUT [--set KEY=VALUE ...]
#
# The same line again continues from OUTPUT's last checkpoint. PROCESSES sets how many GPUs are used; on a machine without
# any, ACCELERATE_USE_CPU=true trains in that many processes.
set -euo pipefail

run=$1 output=$2
shift 2
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}

resume=()
if [[ -f $output/run.json ]]; then
  resume=(--resume)
fi

exec torchrun --standalone --nproc-per-node "$processes" \
  -m meddelinea train "$run" --set output="$output" "$@" "${resume[@]}"
