#!/usr/bin/env bash
# Runs of README.md's plan on the chain task; goes on where it was interrupted.
#   benchmarks/regimes/run.sh N L SEED [ARM,ARM,...]      e.g. run.sh 100 24 1 sft,sft+dr_grpo
# Some four minutes of one core for an arm.
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${PREFIX_RFT:-.venv/bin/prefix-rft} python=${PYTHON:-.venv/bin/python}
n=$1 steps=$2 seed=$3 arms=${4:-}
cell=chain-N$n-L$steps data=data/regimes/$cell/seed-$seed results=benchmarks/regimes/results/$cell/seed-$seed
export OMP_NUM_THREADS=1
if [ ! -e "$data/fresh.jsonl" ]; then
  "$command" task chain "$data" --train-rows "$n" --steps "$steps" --seed "$seed"
  "$python" benchmarks/regimes/fresh.py "$data"
fi
for name in chain forgetting; do  # the longest answer, its EOS included
  sed "s/max_completion_length: 97/max_completion_length: $((4 * steps + 1))/" \
    "benchmarks/regimes/$name.yaml" >"$data/regimes-$name.yaml"
done
mkdir -p "$(dirname "$results")"
"$command" compare "$data/regimes-chain.yaml" ${arms:+--methods "$arms"} --output "$results" --jobs "${JOBS:-1}"
[ -e "$results/advice.json" ] || {
  "$command" advise "$data/regimes-chain.yaml" method=dr_grpo "model=$PWD/$results/arms/sft/seed-0/model" \
    --rows "$n" --samples 64 --output "$data/advice"
  cp "$data/advice/advice.json" "$results/advice.json"
}
"$python" benchmarks/regimes/curves.py "$results"
