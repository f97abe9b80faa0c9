#!/bin/sh
# LLaMA-13B finetuned and evaluated as by llama-13b.sh, on a TPU slice of several hosts.
#
#   gcloud compute tpus tpu-vm create mynah --zone us-east5-a --accelerator-type v5p-32 --version v2-alpha-tpuv5
#   gcloud compute tpus tpu-vm ssh mynah --zone us-east5-a --worker=0       then, in the repository's folder:
#   TPU=mynah ZONE=us-east5-a WEIGHTS=models/llama-13b MIX=mix.jsonl.gz NQ_SYNTHETIC=nq.jsonl MMLU=mmlu/ NQ_DEV=... NQ_TRAIN=... sh runs/tpu-slice.sh
#   DRY_RUN=1 sh runs/tpu-slice.sh                           prints the commands, runs nothing
#
# It runs on worker 0, which starts train.py on all workers and does the rest alone. The folder, $OUT and the files are on a disk that all workers mount at one place
# (Filestore, say), and the requirements are installed on each of them.
#
# Hardware: v5p-32, 16 chips on 4 hosts. Not run: no such hardware was at hand. Predicted by
# `python train.py --plan --model llama-13b --mesh 16x1 --steps N --prefetch`; a test holds these lines against it:
#
#   memory a device   16.65 GiB (a v5p holds 95)
#   disk              145 GiB a checkpoint, two kept of each training; the Hugging Face folder 48 GiB
#   hours, training alone                           16 x v5p
#                                      least    50 %    40 %
#     20M tokens        306 steps      0.080   0.121   0.151
#     80M tokens      1,221 steps      0.320   0.482   0.602
#     150M tokens     2,289 steps      0.601   0.904   1.130
#     NQ-synthetic      184 steps      0.017   0.017   0.017
#
#   least: all arithmetic at the peak, or the wire if slower: no run can be shorter. 50 %, 40 %: at that MFU, which is assumed. Start-up, compiling, checkpoints,
#   held-out losses and the evaluations, which one host runs, come on top.
#   expected loss     not known: the paper gives none

# --- this slice ---
MODEL=llama-13b
WEIGHTS=${WEIGHTS:-models/$MODEL}
BATCH=${BATCH:-32}
BLOCK=${BLOCK:-2048}
NQ_BLOCK=${NQ_BLOCK:-128}
TPU=${TPU:-mynah}
ZONE=${ZONE:-us-east5-a}
MESH=${MESH:-16x1}
EVAL_MESH=${EVAL_MESH:-4x1}
EVERYWHERE=on_all_workers
# worker 0 alone: without these its JAX waits for the other hosts
export TPU_HOST_BOUNDS=1,1,1 TPU_CHIPS_PER_HOST_BOUNDS=2,2,1 TPU_VISIBLE_DEVICES=0,1,2,3

on_all_workers() {
    run gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "cd $(quoted "$PWD") && $(quoted "$@" --coordinator auto)"
}

. "$(dirname "$0")/recipe"          # the other variables and the steps
