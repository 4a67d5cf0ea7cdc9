#!/usr/bin/env bash
# Trains MG-LLaVA with Vicuna-1.5-13B: pretrain, SFT, then evaluation on the benchmarks of the SFT config.
#   bash script/train_vicuna13B.sh [--dry-run] [--allow-missing] [-- arguments of xtuner train]
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

train_all configs/vicuna/fuse_vicuna13b_clip_L_14_336_pretrain_padding.py configs/vicuna/fuse_vicuna13b_clip_L_14_336_sft_padding.py "$@"
