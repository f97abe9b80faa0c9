#!/bin/sh
# A training step on one NVIDIA GPU against transformers on the same card: tokens/s, MFU, peak memory of LLaMA 1.3B and 7B. Under ten minutes.
#
#   sh bench/gpu.sh                  an H100 or H200 (7B needs the H200's 141 GB)
#   sh bench/gpu.sh --toy            everything at toy size on the CPU, a minute on two free cores
#   PYTHON=.venv/bin/python sh bench/gpu.sh --models 1.3b
#
# Needs requirements-compare.txt, and JAX and torch for the card: pip install -U "jax[cuda12]" torch. What is measured and how: bench/gpu.py.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" bench/gpu.py "$@"
