#!/usr/bin/env bash
# Installs everything into .venv (once), then runs every check: lint, format, types, tests. It needs no GPU, and no network afterwards.
#   bash script/run_tests.sh               everything except tests that need a GPU
#   bash script/run_tests.sh -k splice     passes the arguments to pytest; skips lint and types
#   PYTHON=python3.10 VENV=.venv310 bash script/run_tests.sh    with another interpreter
source "$(dirname "${BASH_SOURCE[0]}")/common_env.sh"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
# one test process per core, so one thread each
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi

echo "==> ruff";  ruff check .
echo "==> format"; ruff format --check .
echo "==> types"; mypy
echo "==> file sizes"; git ls-files -z | xargs -0 python tools/check_large_files.py
echo "==> tests"
exec python -m pytest -n "$(env -u OMP_NUM_THREADS nproc)" --dist loadfile -m "not gpu" --durations=15
