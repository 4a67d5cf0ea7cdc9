#!/usr/bin/env bash
# Trains MG-LLaVA with Llama-3-8B-Instruct: pretrain, SFT, then evaluation on the benchmarks of the SFT config.
#   bash script/train_llama3.sh [--dry-run] [--allow-missing] [-- arguments of xtuner train]
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

train_all configs/llama3/fuse_llama3_8b_clip_L_14_336_pretrain_padding.py configs/llama3/fuse_llama3_8b_clip_L_14_336_sft_padding.py "$@"
