#!/usr/bin/env bash
# Stage 1: trains the connectors on captions.
#   bash script/train_pretrain.sh CONFIG [--dry-run] [-- arguments of xtuner train]
# CONFIG is a config's path, its name, or any path that ends in its file name.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

parse_arguments "$@"
if [ ${#POSITIONAL[@]} -ne 1 ]; then fail "expected one CONFIG, got ${#POSITIONAL[@]}: see --help"; fi
read -ra options <<<"${PRETRAIN_OPTIONS:-}"
options+=("${OPTIONS[@]}")

inspect "${POSITIONAL[0]}" "${options[@]}"
train_stage "${POSITIONAL[0]}" "${options[@]}"
