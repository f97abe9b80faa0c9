#!/bin/sh
# GPT-2 XL (1.5B) finetuned and evaluated as by gpt2-xl.sh, on one GPU of 80 GB.
#
#   WEIGHTS=models/gpt2-xl MIX=mix.jsonl.gz NQ_SYNTHETIC=nq.jsonl MMLU=mmlu/ NQ_DEV=... NQ_TRAIN=... sh runs/one-gpu.sh
#   DRY_RUN=1 sh runs/one-gpu.sh                             prints the commands, runs nothing
#
# Hardware: one A100-80 or H100. Not run: no such hardware was at hand. Predicted by
# `python train.py --plan --model gpt2-xl --mesh 1x1 --steps N --block 1024 --batch 64 --accumulate 8`; a test holds these lines against it:
#
#   memory a device   25.36 GiB (an A100-80 and an H100 hold 74.5)
#   disk              17 GiB a checkpoint, two kept of each training; the Hugging Face folder 6 GiB
#   hours, training alone                           1 x A100                1 x H100
#                                      least    50 %    40 %   least    50 %    40 %
#     20M tokens        306 steps      0.230   0.350   0.438   0.073   0.110   0.138
#     80M tokens      1,221 steps      0.920   1.397   1.746   0.290   0.441   0.551
#     150M tokens     2,289 steps      1.724   2.618   3.273   0.544   0.826   1.032
#     NQ-synthetic      184 steps      0.008   0.013   0.016   0.003   0.004   0.005
#
#   least: all arithmetic at the peak: no run can be shorter. 50 %, 40 %: at that MFU, which is assumed. Start-up, compiling, checkpoints, held-out losses and the
#   evaluations come on top.
#   expected loss     not known: the paper gives none

# --- this machine ---
MODEL=gpt2-xl
WEIGHTS=${WEIGHTS:-models/$MODEL}
BATCH=${BATCH:-64}                  # rows a step, eight at a time
BLOCK=${BLOCK:-1024}
NQ_BLOCK=${NQ_BLOCK:-128}
MESH=${MESH:-1x1}
TRAIN=${TRAIN:---accumulate 8}
. "$(dirname "$0")/recipe"          # the other variables and the steps
