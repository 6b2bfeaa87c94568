#!/usr/bin/env bash
# The comparison of this folder; goes on where it was interrupted. A few hours of one CPU core.
#   benchmarks/real/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
command=${PREFIX_RFT:-.venv/bin/prefix-rft}
data=data/arithmetic
[ -e "$data/compare.yaml" ] || "$command" task arithmetic "$data"
mkdir -p benchmarks/real/results
# The two values of the plan, of which either lies at an edge.
OMP_NUM_THREADS=1 "$command" compare "$data/compare.yaml" compare.further=false \
  --output benchmarks/real/results/arithmetic --jobs "${JOBS:-2}"
