#!/usr/bin/env bash
# Chats with a model about a picture, in the terminal.
#   bash script/chat.sh [--dry-run] ARGUMENTS     the arguments of xtuner chat, e.g. FOLDER --image picture.jpg
# `xtuner chat --help` lists them.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

case ${1:-} in
    "" | -h | --help)
        print_heads "$0"
        exit 0
        ;;
    --dry-run) DRY_RUN=1 && shift ;;
esac
run "$PYTHON" -m xtuner chat "$@"
