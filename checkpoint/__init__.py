"""Weights in and out: any model path in; Hugging Face folders, EasyLM streams and a run's own out.

A model is first indexed and checked whole: names, shapes, sizes. Then one tensor at a time is
mapped into memory, and of it only the slices are read that this process's devices hold. Left out:
pickled PyTorch files (never opened: unpickling runs code), quantised safetensors, LoRA adapters.
"""

MODEL_PATHS = (
    "a run directory, a Hugging Face folder, a .gguf file, params::FILE (an EasyLM stream), a "
    "llama2.c .bin or ORG/NAME on the hub"
)
