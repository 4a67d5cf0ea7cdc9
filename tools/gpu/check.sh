#!/usr/bin/env bash
# Checks correctness and measures speed on one GPU, on a machine without a network; see docs/gpu.md.
#
#   bash tools/gpu/check.sh [--minutes 8] [--wheels DIR] [--out DIR] [--stages STAGE ...] [--device cpu --tiny]
#
# PYTHON=python3 names the interpreter, which must hold torch. The packages of --wheels are unpacked below --out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec "${PYTHON:-python3}" tools/gpu/check.py "$@"
