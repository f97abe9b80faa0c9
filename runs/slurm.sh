#!/bin/sh
#SBATCH --job-name=llama-13b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
# LLaMA-13B finetuned and evaluated as by llama-13b.sh, on several nodes of 8 GPUs under SLURM.
#
#   WEIGHTS=models/llama-13b MIX=mix.jsonl.gz NQ_SYNTHETIC=nq.jsonl MMLU=mmlu/ NQ_DEV=... NQ_TRAIN=... sbatch runs/slurm.sh     (from the repository's folder)
#   DRY_RUN=1 sh runs/slurm.sh                             prints the commands, runs nothing
#
# The folder, $OUT and the files are on a disk that all nodes see. A job that was stopped or requeued goes on: each program finds what it has made.
#
# Hardware: 4 nodes of 8 A100-80 or 8 H100 with a network card for each GPU (200 and 400 Gb/s). Not run: no such hardware was at hand. Predicted by
# `python train.py --plan --model llama-13b --mesh 32x1 --steps N --prefetch`; a test holds these lines against it:
#
#   memory a device   9.61 GiB (an A100-80 and an H100 hold 74.5)
#   disk              145 GiB a checkpoint, two kept of each training; the Hugging Face folder 48 GiB
#   hours, training alone                          32 x A100               32 x H100
#                                      least    50 %    40 %   least    50 %    40 %
#     20M tokens        306 steps      0.059   0.089   0.111   0.021   0.028   0.035
#     80M tokens      1,221 steps      0.236   0.355   0.443   0.085   0.112   0.140
#     150M tokens     2,289 steps      0.442   0.665   0.831   0.159   0.210   0.262
#     NQ-synthetic      184 steps      0.026   0.026   0.026   0.013   0.013   0.013
#
#   least: all arithmetic at the peak, or the wire if slower: no run can be shorter. 50 %, 40 %: at that MFU, which is assumed. Start-up, compiling, checkpoints,
#   held-out losses and the evaluations, which the first node runs, come on top.
#   expected loss     not known: the paper gives none

# --- this cluster ---
MODEL=llama-13b
WEIGHTS=${WEIGHTS:-models/$MODEL}
BATCH=${BATCH:-32}
BLOCK=${BLOCK:-2048}
NQ_BLOCK=${NQ_BLOCK:-128}
ROOT=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}    # sbatch runs a copy of this file
MESH=${MESH:-$((${SLURM_NNODES:-4} * 8))x1}
EVAL_MESH=${EVAL_MESH:-8x1}
HEAD=${HEAD:-${SLURMD_NODENAME:-$(hostname)}}   # the batch script runs on the first node, which is process 0
PORT=${PORT:-12355}
EVERYWHERE=on_all_nodes
export HEAD PORT

on_all_nodes() { run srun --nodes="${SLURM_NNODES:-4}" --ntasks-per-node=1 sh runs/slurm.sh --process "$@"; }

if [ "${1:-}" = --process ]; then               # one of srun's processes: the command behind, told which process it is
    shift
    exec "$@" --coordinator "$HEAD:$PORT" --processes "$SLURM_NTASKS" --process "$SLURM_PROCID"
fi
. "$ROOT/runs/recipe"                           # the other variables and the steps
