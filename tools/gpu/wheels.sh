#!/usr/bin/env bash
# Makes the folder of wheels for tools/gpu/check.sh: the packages that a machine with torch, transformers, timm, peft,
# accelerate, pyarrow and pytest does not have. Needs a network; nothing of it is committed.
#
#   bash tools/gpu/wheels.sh DIR
#
# Environment variables:
#   PYTHON=3.12     version of the Python there
#   TORCH=2.11      version of the torch there, which check.sh compares
#   MOST=40         MB that the folder may take
set -euo pipefail
if [ $# -ne 1 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
python=${PYTHON:-3.12} torch=${TORCH:-2.11} most=${MOST:-40} target=$1
packages=(
    mmengine addict termcolor yapf platformdirs
    open_clip_torch ftfy wcwidth
    datasets dill multiprocess
    pydantic pydantic-core annotated-types typing-inspection hjson
    liger-kernel
)
mkdir -p "$target"
rm -f "$target"/*.whl
# pydantic names the one version of its core that fits, and of no other package there are two that must agree
core=$(python3 -m pip download -q --no-deps --dest "$target" --only-binary=:all: pydantic &&
    unzip -p "$target"/pydantic-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core==\([0-9.]*\).*/\1/p')
platforms=()
for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
python3 -m pip download -q --no-deps --dest "$target" --only-binary=:all: --python-version "$python" \
    --implementation cp --platform manylinux2014_x86_64 "${platforms[@]}" "${packages[@]/#pydantic-core/pydantic-core==$core}"
# DeepSpeed comes as source: without operators built beforehand its wheel is Python alone
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu python3 -m pip wheel -q --no-deps --no-build-isolation --wheel-dir "$target" deepspeed
echo "{\"python\": \"$python\", \"torch\": \"$torch\"}" >"$target/made_for.json"
size=$(du -sm "$target" | cut -f1)
echo "$(ls "$target"/*.whl | wc -l) wheels, $size MB in $target"
if [ "$size" -gt "$most" ]; then
    echo "$target takes $size MB, and $most were allowed: leave something out of $0." >&2
    exit 1
fi
