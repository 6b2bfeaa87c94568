#!/usr/bin/env bash
# Runs of README.md's plan; goes on where it was interrupted.
#   benchmarks/regimes/run.sh chain 75 24 SEED [ARM,ARM,...]     e.g. ... chain 75 24 1 sft,sft+dr_grpo
#   benchmarks/regimes/run.sh parity 1024 16 SEED [ARM,ARM,...]
#   benchmarks/regimes/run.sh countdown 100 4 SEED [ARM,ARM,...]
# The numbers are demonstrations, and steps of a chain or numbers of a puzzle. Some four minutes of one
# core for an arm.
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${PREFIX_RFT:-.venv/bin/prefix-rft} python=${PYTHON:-.venv/bin/python}
task=$1 n=$2 steps=$3 seed=$4 arms=${5:-}
cell=$task-N$n-L$steps data=data/regimes/$cell/seed-$seed results=benchmarks/regimes/results/$cell/seed-$seed
export OMP_NUM_THREADS=1
rows=(--train-rows "$n" --seed "$seed")
case $task in
  chain) rows=(chain "$data" "${rows[@]}" --steps "$steps") ;;
  parity) rows=(chain "$data" "${rows[@]}" --steps "$steps" --rule parity) ;;
  countdown) rows=(countdown "$data" "${rows[@]}" --operands "$steps") ;;
  *) echo "no task '$task'" >&2; exit 2 ;;
esac
[ -e "$data/recipe.yaml" ] || "$command" task "${rows[@]}"
if [ "$task" = countdown ]; then
  recipe=$data/regimes-countdown.yaml
  # SFT's steps: the plan's, and those that were best on validation rows with few demonstrations.
  sft=${SFT_STEPS:-$([ "$n" -gt 100 ] && echo 1500 || echo 50)}
  sed "s/max_steps: 1500/max_steps: $sft/" benchmarks/regimes/countdown.yaml >"$recipe"
else
  [ "$task" = parity ] || [ -e "$data/fresh.jsonl" ] || "$python" benchmarks/regimes/fresh.py "$data"
  recipe=$data/regimes-chain.yaml
  for name in chain forgetting; do  # the longest answer, its EOS included
    sed "s/max_completion_length: 97/max_completion_length: $((4 * steps + 1))/" \
      "benchmarks/regimes/$name.yaml" >"$data/regimes-$name.yaml"
  done
fi
mkdir -p "$(dirname "$results")"
"$command" compare "$recipe" ${arms:+--methods "$arms"} --output "$results" --jobs "${JOBS:-1}"
model=$results/arms/sft/seed-0/model
[ -e "$results/advice.json" ] || [ ! -e "$model" ] || {
  "$command" advise "$recipe" method=dr_grpo "model=$PWD/$model" \
    --rows "$(( n < 400 ? n : 400 ))" --samples 64 --output "$data/advice"
  cp "$data/advice/advice.json" "$results/advice.json"
}
"$python" benchmarks/regimes/curves.py "$results"
