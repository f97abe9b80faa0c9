"""Config, a model's sizes; the presets; nothing here imports JAX.

LETTERS  those of model.py.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Config:
    """A model's sizes, by letter, and what its family leaves open."""

    family: str  # "llama" (and what differs from it by the flags below) or "gpt2"
    V: int  # the true vocabulary; arrays are padded to `padded_vocab`
    D: int
    L: int
    N: int
    K: int
    H: int
    F: int
    P: int  # positions it was made for (GPT-2: rows of its table); at most its sliding window
    eps: float
    theta: float = 10000.0
    rope_scaling: tuple | None = None  # (factor,) or Llama 3.1's four: see rope_table
    tied: bool = False  # the output matrix is the embedding
    # of the llama family; GPT-2 has every bias and no norm of heads
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm on each head of q and k, before RoPE

    def __post_init__(self):
        if self.family not in ("llama", "gpt2"):
            raise ValueError(f"model family {self.family!r} is not one of llama, gpt2")
        if self.N % self.K:
            raise ValueError(
                f"{self.N} heads do not divide by {self.K} key/value heads: "
                "every kv head serves the same number of heads"
            )
        if self.family == "llama" and self.H % 2:
            raise ValueError(f"head size {self.H} is odd: RoPE rotates pairs")

    @property
    def padded_vocab(self) -> int:
        """V rounded up to a multiple of 128, on every mesh alike.

        The rows beyond V stay zero and are outside RMS, softmax, sampling and export.
        """
        return -(-self.V // 128) * 128


def llama(V: int, D: int, L: int, N: int, F: int, P: int, eps: float, **more: Any) -> Config:
    """A Config of the llama family; K defaults to N, H to D / N."""
    K, H = more.pop("K", None) or N, more.pop("H", None) or D // N
    return Config("llama", V, D, L, N, K, H, F, P, eps, **more)


def gpt2(V: int, D: int, L: int, N: int, P: int = 1024) -> Config:
    """A Config of the gpt2 family."""
    return Config("gpt2", V, D, L, N, N, D // N, 4 * D, P, 1e-5, tied=True)


def qwen2(V: int, D: int, L: int, N: int, F: int, P: int, **more: Any) -> Config:
    """A Config of Qwen2 and Qwen2.5: a llama with biases on q, k and v."""
    return llama(V, D, L, N, F, P, 1e-6, theta=1e6, qkv_bias=True, **more)


def qwen3(D: int, L: int, N: int, F: int, tied: bool = True) -> Config:
    """A Config of Qwen3: a llama with norms on the heads of q and k, K 8 and H 128 whatever D."""
    sizes = dict(K=8, H=128, theta=1e6, tied=tied, qk_norm=True)
    return llama(151936, D, L, N, F, 40960, 1e-6, **sizes)


LLAMA_3_1 = dict(K=8, theta=5e5, rope_scaling=(8.0, 1.0, 4.0, 8192))
LLAMA_3_2 = dict(K=8, theta=5e5, rope_scaling=(32.0, 1.0, 4.0, 8192), tied=True)

# fmt: off
PRESETS = {
    "gpt2": gpt2(50257, 768, 12, 12),
    "gpt2-medium": gpt2(50257, 1024, 24, 16),
    "gpt2-large": gpt2(50257, 1280, 36, 20),
    "gpt2-xl": gpt2(50257, 1600, 48, 25),
    "llama-7b": llama(32000, 4096, 32, 32, 11008, 2048, 1e-6),
    "llama-13b": llama(32000, 5120, 40, 40, 13824, 2048, 1e-6),
    "llama-30b": llama(32000, 6656, 60, 52, 17920, 2048, 1e-6),
    "llama-65b": llama(32000, 8192, 80, 64, 22016, 2048, 1e-5),
    "llama-2-7b": llama(32000, 4096, 32, 32, 11008, 4096, 1e-5),
    "llama-2-13b": llama(32000, 5120, 40, 40, 13824, 4096, 1e-5),
    "llama-2-70b": llama(32000, 8192, 80, 64, 28672, 4096, 1e-5, K=8),
    "llama-3-8b": llama(128256, 4096, 32, 32, 14336, 8192, 1e-5, K=8, theta=5e5),
    "llama-3-70b": llama(128256, 8192, 80, 64, 28672, 8192, 1e-5, K=8, theta=5e5),
    "llama-3.1-8b": llama(128256, 4096, 32, 32, 14336, 131072, 1e-5, **LLAMA_3_1),
    "llama-3.2-1b": llama(128256, 2048, 16, 32, 8192, 131072, 1e-5, **LLAMA_3_2),
    "llama-3.2-3b": llama(128256, 3072, 28, 24, 8192, 131072, 1e-5, **LLAMA_3_2),
    "tinyllama-1.1b": llama(32000, 2048, 22, 32, 5632, 2048, 1e-5, K=4),
    "smollm2-135m": llama(49152, 576, 30, 9, 1536, 8192, 1e-5, K=3, theta=1e5, tied=True),
    "smollm2-360m": llama(49152, 960, 32, 15, 2560, 8192, 1e-5, K=5, theta=1e5, tied=True),
    "smollm2-1.7b": llama(49152, 2048, 24, 32, 8192, 8192, 1e-5, theta=130000.0, tied=True),
    "mistral-7b": llama(32768, 4096, 32, 32, 14336, 32768, 1e-5, K=8, theta=1e6),  # v0.3
    "qwen2.5-0.5b": qwen2(151936, 896, 24, 14, 4864, 32768, K=2, tied=True),
    "qwen2.5-1.5b": qwen2(151936, 1536, 28, 12, 8960, 131072, K=2, tied=True),
    "qwen2.5-7b": qwen2(152064, 3584, 28, 28, 18944, 131072, K=4),
    "qwen3-0.6b": qwen3(1024, 28, 16, 3072),
    "qwen3-1.7b": qwen3(2048, 28, 16, 6144),
    "qwen3-4b": qwen3(2560, 36, 32, 9728),
    "qwen3-8b": qwen3(4096, 36, 32, 12288, tied=False),
    # the quick start's: half the heads and three quarters of the layers of tiny
    "mini": llama(512, 128, 3, 4, 352, 512, 1e-5),
    "tiny-s": llama(512, 96, 3, 6, 264, 512, 1e-5),
    "tiny": llama(512, 128, 4, 8, 352, 512, 1e-5),
    "tiny-l": llama(512, 192, 5, 8, 528, 512, 1e-5),
    "tiny-gpt2": gpt2(512, 128, 4, 8, P=512),
}
# fmt: on


def preset(name: str) -> Config:
    """The Config of a preset's name; ValueError with the names there are."""
    if name not in PRESETS:
        raise ValueError(f"--model {name} is not a preset: use one of {', '.join(PRESETS)}")
    return PRESETS[name]
