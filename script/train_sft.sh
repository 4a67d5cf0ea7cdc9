#!/usr/bin/env bash
# Stage 2: trains connectors and LLM on instructions, from the checkpoint of stage 1.
#   bash script/train_sft.sh CONFIG [PRETRAIN_CONFIG] [--dry-run] [-- arguments of xtuner train]
# The checkpoint is PRETRAINED_PTH, otherwise the newest of PRETRAIN_CONFIG's run (default: CONFIG with _pretrain for _sft).
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

parse_arguments "$@"
case ${#POSITIONAL[@]} in
    1 | 2) ;;
    *) fail "expected CONFIG and perhaps PRETRAIN_CONFIG, got ${#POSITIONAL[@]} arguments: see --help" ;;
esac
read -ra options <<<"${SFT_OPTIONS:-}"
options+=("${OPTIONS[@]}")
config=${POSITIONAL[0]}
inspect "$config" "${options[@]}"

checkpoint=${PRETRAINED_PTH:-}
if [ -z "$checkpoint" ]; then
    pretrain=${POSITIONAL[1]:-${NAME_OF[$config]/_sft/_pretrain}}
    if [ "$pretrain" = "${NAME_OF[$config]}" ]; then fail "no _sft in '$pretrain': name PRETRAIN_CONFIG or PRETRAINED_PTH"; fi
    NAME_OF[$pretrain]=$(basename "$pretrain" .py)
    checkpoint=$(newest_checkpoint "$pretrain")
fi
train_stage "$config" "pretrained_pth=$checkpoint" "${options[@]}"
