#!/usr/bin/env bash
# The comparisons of this folder; goes on where it was interrupted. About 5 hours of two cores.
#   benchmarks/countdown/run.sh [ordinary|hard|ablations ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${PREFIX_RFT:-.venv/bin/prefix-rft}
results=benchmarks/countdown/results
mkdir -p "$results"
[ $# -gt 0 ] || set -- ordinary hard ablations

for name in "$@"; do
  case $name in
    ordinary | ablations) options=(data/ordinary) ;;
    hard) options=(data/hard --operands 4 --train-rows 10000) ;;
    *) echo "no comparison '$name'" >&2; exit 2 ;;
  esac
  data=${options[0]}
  [ -e "$data/recipe.yaml" ] || "$command" task countdown "${options[@]}"
  if [ "$name" = ablations ]; then
    [ -e "$data/worse" ] || "$command" task countdown "$data/worse" --solver-accuracy 0.5
    # learning_rate: what 'ordinary' chose for prefix_rft
    "$command" compare "$data/compare/ablations.yaml" --output "$results/$name" --jobs "${JOBS:-2}"
  else
    "$command" compare "$data/compare/methods.yaml" --output "$results/$name" --jobs "${JOBS:-2}"
  fi
done
