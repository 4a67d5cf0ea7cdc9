#!/usr/bin/env bash
# Trains MG-LLaVA with Yi-1.5-34B-Chat: pretrain, SFT, then evaluation on the benchmarks of the SFT config.
#   bash script/train_yi34b.sh [--dry-run] [--allow-missing] [-- arguments of xtuner train]
#   (published settings: ZeRO-3, 32 GPUs)
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

train_all configs/yi/fuse_yi34b_clip_L_14_336_pretrain_padding.py configs/yi/fuse_yi34b_clip_L_14_336_sft_padding.py "$@"
