"""Small random models of Hugging Face's `transformers` and their logits, stored for
tests/test_model.py without torch.

    python tests/make_references.py [CASE...]   # writes references/; needs requirements-compare.txt

One file a case, float32, read with allow_pickle=False: `config` (JSON of model.Config's fields),
`versions`, `tokens` [2, T], `logits` [2, T, V], and every weight under its name in Hugging Face's
files. The weights are drawn far larger than an initialisation's, biases and norms too: with small
ones attention is flat and a wrong RoPE stays within the tolerance. What it leaves out: tokenizers,
trained weights, gradients.
"""

import json
import pathlib
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent / "references"

# Sizes are odd and unequal on purpose; heads times head size is not D for LLaMA, so that no two
# axes can be exchanged unseen. `original` of the Llama-3.1 case puts one of the four wavelengths
# (6, 167, 4443, 118,000 tokens) among the kept, one among the blended and two among the stretched.
LLAMA = dict(
    family="llama",
    V=37,
    D=12,
    L=2,
    N=3,
    K=3,
    H=8,
    F=20,
    P=64,
    eps=1e-5,
    theta=10000.0,
    rope_scaling=None,
    tied=False,
)
GPT2 = dict(
    family="gpt2",
    V=37,
    D=15,
    L=2,
    N=3,
    K=3,
    H=5,
    F=60,
    P=24,
    eps=1e-5,
    theta=10000.0,
    rope_scaling=None,
    tied=True,
)
CASES = {
    "llama_mha": LLAMA,
    "llama_gqa": LLAMA | dict(N=4, K=2),
    "llama_tied": LLAMA | dict(N=4, K=1, tied=True, eps=1e-6),
    "llama_theta": LLAMA | dict(N=4, K=2, theta=500000.0),
    "llama_scaled": (
        LLAMA | dict(N=4, K=2, P=512, theta=500000.0, rope_scaling=[8.0, 1.0, 4.0, 256])
    ),
    "gpt2_tied": GPT2,
    "gpt2_untied": GPT2 | dict(tied=False),
    "qwen2": LLAMA | dict(L=1, N=4, K=2, tied=True, qkv_bias=True),
    "qwen3": LLAMA | dict(L=1, N=4, K=2, qk_norm=True),
    "llama_biased": (
        LLAMA | dict(L=1, N=4, K=2, qkv_bias=True, out_bias=True, mlp_bias=True, rope_scaling=[4.0])
    ),
}
T = 23


def rope_parameters(theta, scaling):
    """RoPE as a Config states it, in transformers' words."""
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None and len(scaling) == 1:
        rope |= dict(rope_type="linear", factor=scaling[0])
    elif scaling is not None:
        factor, low, high, original = scaling
        rope |= dict(
            rope_type="llama3",
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=original,
        )
    return rope


def hugging_face(fields, window=None):
    """The `transformers` model of a Config's fields, float32, with plain attention.

    window: a Mistral's sliding window.
    """
    import transformers

    c = fields
    common = dict(
        vocab_size=c["V"],
        tie_word_embeddings=c["tied"],
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    if c["family"] == "gpt2":
        config = transformers.GPT2Config(
            n_embd=c["D"],
            n_layer=c["L"],
            n_head=c["N"],
            n_positions=c["P"],
            layer_norm_epsilon=c["eps"],
            **common,
        )
        return transformers.GPT2LMHeadModel(config).float().eval()
    common |= dict(
        hidden_size=c["D"],
        num_hidden_layers=c["L"],
        num_attention_heads=c["N"],
        num_key_value_heads=c["K"],
        head_dim=c["H"],
        intermediate_size=c["F"],
        max_position_embeddings=c["P"],
        rms_norm_eps=c["eps"],
        rope_parameters=rope_parameters(c["theta"], c["rope_scaling"]),
    )

    def flag(name):
        return c.get(name, False)

    if window is not None:
        config = transformers.MistralConfig(sliding_window=window, **common)
        return transformers.MistralForCausalLM(config).float().eval()
    if flag("qk_norm"):
        config = transformers.Qwen3Config(attention_bias=flag("qkv_bias"), **common)
        return transformers.Qwen3ForCausalLM(config).float().eval()
    if flag("qkv_bias") and not flag("out_bias"):
        config = transformers.Qwen2Config(**common)
        return transformers.Qwen2ForCausalLM(config).float().eval()
    config = transformers.LlamaConfig(
        attention_bias=flag("qkv_bias"), mlp_bias=flag("mlp_bias"), **common
    )
    return transformers.LlamaForCausalLM(config).float().eval()


def make(fields, seed, window=None):
    """(weights by Hugging Face's names, tokens [2, T], logits [2, T, V]) of a randomly filled
    model.
    """
    import torch

    model = hugging_face(fields, window)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():  # a tied output matrix is listed once
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(0.3 * noise + ("bias" not in name))
            else:
                embedding = any(part in name for part in ("embed", "wte", "wpe"))
                weight.copy_(noise * (1.0 if embedding else 1.5 * min(weight.shape) ** -0.5))
        tokens = torch.randint(fields["V"], (2, T), generator=generator)
        logits = model(tokens, use_cache=False).logits
    weights = {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}
    return weights, tokens.numpy().astype(np.int32), logits.numpy()


def main():
    import torch
    import transformers

    # the order of sums, and with it the last bit, does not depend on the machine's cores
    torch.set_num_threads(1)
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, numpy"
        f" {np.__version__}"
    )
    print(versions)
    FOLDER.mkdir(exist_ok=True)
    for seed, (case, fields) in enumerate(CASES.items()):
        if sys.argv[1:] and case not in sys.argv[1:]:
            continue
        weights, tokens, logits = make(fields, seed)
        path = FOLDER / f"model_{case}.npz"
        texts = dict(config=np.array(json.dumps(fields)), versions=np.array(versions))
        np.savez_compressed(path, **texts, tokens=tokens, logits=logits, **weights)
        size, count = path.stat().st_size / 1000, sum(w.size for w in weights.values())
        print(
            f"{path.name:<24} {size:6.1f} kB   {count:,} weights   logits' std {logits.std():.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
