#!/usr/bin/env bash
# Runs of README.md's plan; goes on where it was interrupted. About 40 minutes of one core.
#   benchmarks/continual/run.sh [ARM,ARM,...]
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${PREFIX_RFT:-.venv/bin/prefix-rft} python=${PYTHON:-.venv/bin/python}
data=data/continual results=benchmarks/continual/results
export OMP_NUM_THREADS=1
[ -e "$data/sums-train.jsonl" ] || "$python" benchmarks/continual/three_tasks.py "$data"
cp benchmarks/continual/recipe.yaml "$data/recipe.yaml"
$command continual "$data/recipe.yaml" ${1:+--arms "$1"} --output "$results" --jobs "${JOBS:-1}"
