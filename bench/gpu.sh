#!/bin/sh
# One NVIDIA GPU, measured whole, in nine minutes: training steps of SmolLM2-135M, LLaMA 1.3B and
# 7B's shapes against transformers, decoding, MMLU-like questions, attention, bit-exact resume.
#
#   sh bench/gpu.sh --out DIR            all of it, the most interesting first
#   sh bench/gpu.sh --only decode step:1.3b
#   sh bench/gpu.sh --toy                a case of every kind at toy size on the CPU
#
# Needs requirements-compare.txt, and JAX and torch for the card: pip install -U "jax[cuda12]" torch
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" bench/gpu.py "$@"
