#!/usr/bin/env bash
# The comparisons of this folder; goes on where it was interrupted. About 5 hours of two cores.
#   benchmarks/countdown/run.sh [ordinary|hard|long|ablations|teachers ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${PREFIX_RFT:-.venv/bin/prefix-rft}
results=benchmarks/countdown/results
mkdir -p "$results"
[ $# -gt 0 ] || set -- ordinary hard long ablations

for name in "$@"; do
  case $name in
    ordinary | long | ablations | teachers) options=(data/ordinary) ;;
    hard) options=(data/hard --operands 4 --train-rows 10000) ;;
    *) echo "no comparison '$name'" >&2; exit 2 ;;
  esac
  data=${options[0]}
  [ -e "$data/recipe.yaml" ] || "$command" task countdown "${options[@]}"
  # The values that README.md names; it says which of them lie at an edge.
  recipe=$data/compare/methods.yaml settings=(compare.further=false)
  case $name in
    long) settings+=(max_steps=800 prompts_per_step=32 micro_batch_size=256 --seeds 3) ;;
    ablations)
      [ -e "$data/worse" ] || "$command" task countdown "$data/worse" --solver-accuracy 0.5
      recipe=$data/compare/ablations.yaml  # at the learning rate that 'ordinary' chose
      ;;
    teachers)
      python=${PYTHON:-.venv/bin/python} recipe=$data/teachers.yaml settings=()
      [ -e "$data/reader" ] || "$python" benchmarks/countdown/reader.py "$data/base" "$data/reader"
      [ -e "$data/told/sft/model" ] || "$command" train "$data/recipes/sft.yaml" name=sft \
        runs="$PWD/$data/told" model=../reader seed=100 max_steps=750 learning_rate=1e-3 --resume
      cp benchmarks/countdown/teachers.yaml "$recipe"
      ;;
  esac
  "$command" compare "$recipe" "${settings[@]}" --output "$results/$name" --jobs "${JOBS:-2}"
done
