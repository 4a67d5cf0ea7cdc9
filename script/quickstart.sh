#!/usr/bin/env bash
# Installs the packages, makes the tiny world, trains both stages on it, evaluates, converts and asks one question about a picture.
#
#   bash script/quickstart.sh [SETTING=VALUE ...]     settings of both stages, e.g. max_iters=20 for a short run
#
# It needs two CPU cores, no GPU, and no download except the packages. It reuses the finished steps of an earlier run.
# Environment variables:
#   OUT=work_dirs/quickstart   folder of the two runs, the converted model and the answer
#   QUESTION=0                 number of the test question to ask at the end
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common_env.sh"

OUT=${OUT:-work_dirs/quickstart}
WORLD=work_dirs/tiny_world
started=$SECONDS
settings=(seed=42 "$@")
# Fewer steps than the configs', which the ablation uses, at higher rates, most of all for what links encoders and LLM:
# README.md has what both reach.
pretrain_settings=(max_epochs=1 batch_size=16 lr=2.5e-3)
sft_settings=(max_epochs=1.25 "lr={default:1.5e-3,object_encoder:6e-3,projector:4e-3,fusion:4e-3}")

say() { printf '\n==> [%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

# once NAME COMMAND...: runs a step unless an earlier run on the same world and configs finished it
once() {
    local name=$1 stamp=$OUT/$1.finished
    shift
    if [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then
        say "$name: finished by an earlier run, reused"
        return
    fi
    say "$name"
    "$@"
    echo "$fingerprint" >"$stamp"
}

# train NAME CONFIG SETTING=VALUE...: continues an interrupted run
train() {
    local dir=$OUT/$1 config=$2
    shift 2
    xtuner train "$config" --work-dir "$dir" --resume auto --cfg-options "$@"
}

say "making the tiny world"
python tools/tiny_world/make.py --out "$WORLD"

mkdir -p "$OUT"
fingerprint=$({
    find configs/tiny configs/_base_ -name '*.py' -print0 | sort -z | xargs -0 cat "$WORLD/manifest.json"
    echo "${pretrain_settings[*]} ${sft_settings[*]} ${settings[*]}"
} | sha256sum | cut -d' ' -f1)
# Runs on another world or with other configs would continue from their checkpoints: start again.
if [ "$(cat "$OUT/fingerprint" 2>/dev/null)" != "$fingerprint" ]; then
    rm -rf "$OUT"/{pretrain,sft,test,hf} "$OUT"/*.finished
    echo "$fingerprint" >"$OUT/fingerprint"
fi

once pretrain train pretrain configs/tiny/tiny_pretrain.py "${pretrain_settings[@]}" "${settings[@]}"
once sft train sft configs/tiny/tiny_sft.py "pretrained_pth=$(cat "$OUT/pretrain/last_checkpoint")" "${sft_settings[@]}" "${settings[@]}"
checkpoint=$(cat "$OUT/sft/last_checkpoint")
# The evaluation leaves a core of two half idle, so the export and the question run beside it.
export_and_ask() {
    once convert xtuner convert pth_to_hf configs/tiny/tiny_sft.py "$checkpoint" "$OUT/hf"
    python tools/tiny_world/report.py ask --world "$WORLD" --number "${QUESTION:-0}" --out "$OUT/answer"
    xtuner chat "$OUT/hf" --image "$(cat "$OUT/answer/image.txt")" --boxes "$OUT/answer/boxes.json" \
        --draw "$OUT/answer/picture.png" --prompt "$(cat "$OUT/answer/question.txt")" >"$OUT/answer/answer.txt"
}
say "exporting the model, and asking it about a picture (log: $OUT/export.log)"
export_and_ask >"$OUT/export.log" 2>&1 &
exporting=$!
once test xtuner test configs/tiny/tiny_sft.py --checkpoint "$checkpoint" --work-dir "$OUT/test"
wait "$exporting" || { cat "$OUT/export.log" >&2; exit 1; }

say "done"
python tools/tiny_world/report.py table --world "$WORLD" --metrics "$OUT"/test/*/metrics.json
echo "Picture:  $OUT/answer/picture.png (with the boxes it was given)"
echo "Question: $(cat "$OUT/answer/question.txt")"
echo "Answer:   $(cat "$OUT/answer/answer.txt")   (expected: $(cat "$OUT/answer/expected.txt"))"
