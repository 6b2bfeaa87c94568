#!/usr/bin/env bash
# The quickstart's task with and without the hybrid row: 3 seeds each, one thread a run, two at once.
# Writes runs/quickstart-METHOD-SEED; `python benchmarks/quickstart.py` makes quickstart.md of them.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
bin=${BIN:-.venv/bin}
"$bin/prefix-rft" task countdown data/countdown
for seed in 0 1 2; do
  for method in prefix_rft dr_grpo; do
    "$bin/prefix-rft" train data/countdown/recipe.yaml \
      "method=$method" "seed=$seed" "name=quickstart-$method-$seed" \
      > "data/quickstart-$method-$seed.log" 2>&1 &
  done
  wait
done
