"""What other projects call our weights: names and layouts in Hugging Face files and EasyLM streams.

One row a weight. A test asserts that every weight of `model.weight_table` has one.
"""

from typing import NamedTuple

import model


class FileName(NamedTuple):
    """How the files of other projects keep one weight of ours."""

    hf: str  # name in a Hugging Face file, {} the layer
    hf_transposed: bool  # stored there with its two dimensions exchanged
    easylm: (
        str | None
    )  # name in an EasyLM (Flax) stream; None where EasyLM's model has no such weight
    easylm_transposed: bool = False
    part: int | None = None  # which third of a file's fused q, k, v it is (GPT-2)
    # RoPE rotates its last dimension, whose pairs are half-split here and in Hugging Face's files,
    # neighbours in EasyLM's and llama2.c's
    rope: bool = False


H, E = "model.layers.{}.", "transformer/h/{}/"
# fmt: off
LLAMA = {
    "embed": FileName("model.embed_tokens.weight", False, "transformer/wte/embedding"),
    "attn_norm": FileName(H + "input_layernorm.weight", False, E + "attention_norm/kernel"),
    "wq": FileName(H + "self_attn.q_proj.weight", True, E + "attention/wq/kernel", rope=True),
    "bq": FileName(H + "self_attn.q_proj.bias", False, None, rope=True),
    "wk": FileName(H + "self_attn.k_proj.weight", True, E + "attention/wk/kernel", rope=True),
    "bk": FileName(H + "self_attn.k_proj.bias", False, None, rope=True),
    "wv": FileName(H + "self_attn.v_proj.weight", True, E + "attention/wv/kernel"),
    "bv": FileName(H + "self_attn.v_proj.bias", False, None),
    "q_norm": FileName(H + "self_attn.q_norm.weight", False, None, rope=True),
    "k_norm": FileName(H + "self_attn.k_norm.weight", False, None, rope=True),
    "wo": FileName(H + "self_attn.o_proj.weight", True, E + "attention/wo/kernel"),
    "bo": FileName(H + "self_attn.o_proj.bias", False, None),
    "mlp_norm": FileName(H + "post_attention_layernorm.weight", False, E + "ffn_norm/kernel"),
    "w1": FileName(H + "mlp.gate_proj.weight", True, E + "feed_forward/w1/kernel"),
    "b1": FileName(H + "mlp.gate_proj.bias", False, None),
    "w3": FileName(H + "mlp.up_proj.weight", True, E + "feed_forward/w3/kernel"),
    "b3": FileName(H + "mlp.up_proj.bias", False, None),
    "w2": FileName(H + "mlp.down_proj.weight", True, E + "feed_forward/w2/kernel"),
    "b2": FileName(H + "mlp.down_proj.bias", False, None),
    "final_norm": FileName("model.norm.weight", False, "transformer/ln_f/kernel"),
    "head": FileName("lm_head.weight", False, "lm_head/kernel", True),
}

G = "transformer.h.{}."
# Conv1D keeps [in, out]; Flax's keeps [out, in]
GPT2 = {
    "embed": FileName("transformer.wte.weight", False, "transformer/wte/embedding"),
    "pos": FileName("transformer.wpe.weight", False, "transformer/wpe/embedding"),
    "attn_norm": FileName(G + "ln_1.weight", False, E + "ln_1/scale"),
    "attn_norm_b": FileName(G + "ln_1.bias", False, E + "ln_1/bias"),
    "wq": FileName(G + "attn.c_attn.weight", False, E + "attn/c_attn/kernel", True, part=0),
    "bq": FileName(G + "attn.c_attn.bias", False, E + "attn/c_attn/bias", part=0),
    "wk": FileName(G + "attn.c_attn.weight", False, E + "attn/c_attn/kernel", True, part=1),
    "bk": FileName(G + "attn.c_attn.bias", False, E + "attn/c_attn/bias", part=1),
    "wv": FileName(G + "attn.c_attn.weight", False, E + "attn/c_attn/kernel", True, part=2),
    "bv": FileName(G + "attn.c_attn.bias", False, E + "attn/c_attn/bias", part=2),
    "wo": FileName(G + "attn.c_proj.weight", False, E + "attn/c_proj/kernel", True),
    "bo": FileName(G + "attn.c_proj.bias", False, E + "attn/c_proj/bias"),
    "mlp_norm": FileName(G + "ln_2.weight", False, E + "ln_2/scale"),
    "mlp_norm_b": FileName(G + "ln_2.bias", False, E + "ln_2/bias"),
    "w1": FileName(G + "mlp.c_fc.weight", False, E + "mlp/c_fc/kernel", True),
    "b1": FileName(G + "mlp.c_fc.bias", False, E + "mlp/c_fc/bias"),
    "w2": FileName(G + "mlp.c_proj.weight", False, E + "mlp/c_proj/kernel", True),
    "b2": FileName(G + "mlp.c_proj.bias", False, E + "mlp/c_proj/bias"),
    "final_norm": FileName("transformer.ln_f.weight", False, "transformer/ln_f/scale"),
    "final_norm_b": FileName("transformer.ln_f.bias", False, "transformer/ln_f/bias"),
    "head": FileName("lm_head.weight", False, "lm_head/kernel", True),
}
# fmt: on

# Hugging Face's names in GGUF's words
GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def file_names(config: model.Config) -> dict[str, FileName]:
    """name -> FileName of every weight of the model, in the order of its weight table."""
    names = {"llama": LLAMA, "gpt2": GPT2}[config.family]
    return {name: names[name] for name in model.weight_table(config)}


def gguf_name(hf: str) -> str:
    """GGUF's name of a tensor of the llama family, from Hugging Face's."""
    stem, _, end = hf.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{GGUF[rest]}.{end}"
    return f"{GGUF[stem]}.{end}"
