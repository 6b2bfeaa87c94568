#!/usr/bin/env bash
# Everything worth knowing of a GPU, in at most 8 minutes and without a network:
#   PYTHON=.venv/bin/python benchmarks/gpu.sh [--output benchmarks/gpu.json]
# The same in small on a CPU: benchmarks/gpu.sh --device cpu --short
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
