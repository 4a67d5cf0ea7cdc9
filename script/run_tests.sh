#!/usr/bin/env bash
# Installs what is needed into .venv (once), then runs every check: lint, format, types, tests. No GPU, no network after installing.
#   bash script/run_tests.sh               everything but tests that need a GPU
#   bash script/run_tests.sh -k splice     arguments go to pytest; lint and types are then left out
#   PYTHON=python3.10 VENV=.venv310 bash script/run_tests.sh    with another interpreter
source "$(dirname "${BASH_SOURCE[0]}")/common_env.sh"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
# a test process per core, so one thread each
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi

echo "==> ruff";  ruff check .
echo "==> format"; ruff format --check .
echo "==> types"; mypy
echo "==> file sizes"; git ls-files -z | xargs -0 python tools/check_large_files.py
echo "==> tests"
exec python -m pytest -n "$(nproc)" --dist loadfile -m "not gpu" --durations=15
