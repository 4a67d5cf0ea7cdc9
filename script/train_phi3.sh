#!/usr/bin/env bash
# Trains MG-LLaVA with Phi-3-mini-3.8B: pretrain, SFT, then evaluation on the benchmarks of the SFT config.
#   bash script/train_phi3.sh [--dry-run] [--allow-missing] [-- arguments of xtuner train]
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

train_all configs/phi3/fuse_phi3_clip_L_14_336_pretrain_padding.py configs/phi3/fuse_phi3_clip_L_14_336_sft_padding.py "$@"
