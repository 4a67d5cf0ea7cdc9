# Sourced by quickstart.sh and run_tests.sh: changes to the project's root and makes or reuses the virtual environment in .venv.
#   PYTHON=python3.11   interpreter for the environment (default: the first of python3.11, 3.12, 3.10, python3 that is 3.10-3.12)
#   VENV=.venv          folder of the environment; none = the python and xtuner that are there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The range of versions stands in xtuner/__init__.py, which refuses others.
_find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -m xtuner version >/dev/null && command -v "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.10 python3; do
        if "$candidate" -m xtuner version >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    echo "No Python 3.10-3.12 found. Install one, or name it: PYTHON=/path/to/python bash $0" >&2
    return 1
}

setup_environment() {
    local venv=${VENV:-.venv} python stamp wanted
    if [ "$venv" = none ]; then
        return
    fi
    if [ ! -x "$venv/bin/python" ]; then
        python=$(_find_python)
        echo "==> making $venv with $python"
        "$python" -m venv "$venv"
    fi
    # one of an earlier time, made with another Python
    "$venv/bin/python" -m xtuner version >/dev/null
    stamp=$venv/.installed
    wanted=$(cat setup.py requirements/*.txt | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "==> installing the packages into $venv (once; several minutes, mostly torch)"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
        "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off -e '.[tests]' |
            awk '/^(Collecting|Installing|Successfully)/ { print substr($0, 1, 150) }'
        echo "$wanted" >"$stamp"
    fi
    PATH=$PWD/$venv/bin:$PATH
    export PATH
}

setup_environment
