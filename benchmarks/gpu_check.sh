#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of less than eight minutes: benchmarks/gpu_check.sh OUT
# Another Python than python3: PYTHON=/path/to/python benchmarks/gpu_check.sh OUT
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
