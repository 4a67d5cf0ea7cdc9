#!/usr/bin/env bash
# Evaluates a checkpoint on every benchmark of its config whose files are present.
#   bash script/test.sh CONFIG [CHECKPOINT] [--dry-run] [--allow-missing] [-- arguments of xtuner test]
# CHECKPOINT defaults to the newest checkpoint of the config's run.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

parse_arguments "$@"
case ${#POSITIONAL[@]} in
    1 | 2) ;;
    *) fail "expected CONFIG and perhaps CHECKPOINT, got ${#POSITIONAL[@]} arguments: see --help" ;;
esac
config=${POSITIONAL[0]}
NEEDS_TRAINING_FILES=''
TEST_ARGUMENTS=("${EXTRA[@]}")
inspect "$config" "${OPTIONS[@]}"
check_benchmarks "$config" "${OPTIONS[@]}"
checkpoint=${POSITIONAL[1]:-$(newest_checkpoint "$config")}
evaluate "$config" "$checkpoint" "${OPTIONS[@]}"
exit "$STATUS"
