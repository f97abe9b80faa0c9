"""Hugging Face's config.json, read and written: LLaMA, Mistral, Qwen2, Qwen3 and GPT-2.

What would change the arithmetic and is not here is refused, named with its file and its key.
"""

from pathlib import Path
from typing import Any

import model

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GPT2LMHeadModel": "gpt2",
    "GPT2Model": "gpt2",
}
ROPE_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
DAMAGED = "copy it again from where the model came from"
MOST = {"V": 2**24, "D": 2**20, "L": 4096, "N": 4096, "K": 4096, "H": 2**16, "F": 2**24, "P": 2**31}


def read_config(record: dict[str, Any], where: str | Path) -> model.Config:
    """Config from the object in a config.json; ValueError for what is not here. where: its name."""
    family = family_of(record, where)
    require(record, where, "quantization_config", None)
    try:
        fields = gpt2_fields(record, where) if family == "gpt2" else llama_fields(record, where)
        check_sizes(fields, where)
        if family not in ("gpt2", "llama"):
            fields |= flags_of(family, record, where, fields["P"])
        tied = record.get("tie_word_embeddings", family == "gpt2")
        if type(tied) is not bool:
            raise ValueError(
                f"{where}: tie_word_embeddings is {tied!r}, no true or false: {DAMAGED}"
            )
        fields["eps"] = float(fields["eps"])
        return model.Config("gpt2" if family == "gpt2" else "llama", **fields, tied=tied)
    except KeyError as error:
        raise ValueError(f"{where} lacks {error}: {DAMAGED}") from None
    except (TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{where} has a value of the wrong type ({error}): {DAMAGED}") from None


def check_sizes(fields: dict[str, Any], where: str | Path) -> None:
    """ValueError for a size of Config that no model has."""
    for letter, most in MOST.items():
        if type(fields[letter]) is not int or not 0 < fields[letter] <= most:
            raise ValueError(f"{where} gives {fields[letter]!r} for a size ({letter}): {DAMAGED}")


def family_of(record: dict[str, Any], where: str | Path) -> str:
    """A value of FAMILIES, by `architectures`, or by model_type where that is not there."""
    names = record.get("architectures")
    if not isinstance(names, list | None) or any(not isinstance(n, str) for n in names or []):
        raise ValueError(f"{where}: architectures is {names!r}, no list of names: {DAMAGED}")
    name = (names or [None])[0]
    family = FAMILIES.get(name) if name is not None else record.get("model_type")
    if family not in FAMILIES.values():
        raise ValueError(
            f"{where}: architecture {name or record.get('model_type')} is not supported: use one "
            f"of {', '.join(FAMILIES)}"
        )
    return str(family)


def require(record: dict[str, Any], where: str | Path, key: str, *allowed: Any) -> None:
    """ValueError where the record's key is none of the allowed values; the first is its default."""
    value = record.get(key, allowed[0])
    if not any(value is a or value == a and type(value) is type(a) for a in allowed):
        only = " or ".join(map(repr, allowed))
        raise ValueError(
            f"{where}: {key} {value!r} is not supported, only {only}: use a model without it"
        )


def flags_of(family: str, c: dict[str, Any], where: str | Path, positions: int) -> dict[str, Any]:
    """Config's fields in which a family differs from LLaMA."""
    if family == "qwen2":
        require(c, where, "use_sliding_window", False)
        return {"qkv_bias": True}
    if family == "qwen3":
        require(c, where, "use_sliding_window", False)
        biases = {"qkv_bias": True, "out_bias": True} if c.get("attention_bias") else {}
        return {"qk_norm": True} | biases
    # Mistral attends to the last `sliding_window` tokens: in a block that is no longer, to all
    window = c.get("sliding_window")
    if window is not None and (type(window) is not int or window < 1):
        raise ValueError(f"{where}: sliding_window is {window!r}, no length: {DAMAGED}")
    return {"P": min(positions, window or positions)}


def gpt2_fields(c: dict[str, Any], where: str | Path) -> dict[str, Any]:
    """Config's fields, as the file has them, of a GPT-2's config.json."""
    require(c, where, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    require(c, where, "scale_attn_weights", True)
    require(c, where, "scale_attn_by_inverse_layer_idx", False)
    require(c, where, "add_cross_attention", False)
    D, N = c["n_embd"], c["n_head"]
    return {
        "V": c["vocab_size"],
        "D": D,
        "L": c["n_layer"],
        "N": N,
        "K": N,
        "H": D // N,
        "F": c.get("n_inner") or 4 * D,
        "P": c.get("n_positions", 1024),
        "eps": c.get("layer_norm_epsilon", 1e-5),
    }


def llama_fields(c: dict[str, Any], where: str | Path) -> dict[str, Any]:
    """Config's fields, as the file has them, of a config.json of LLaMA's kin."""
    require(c, where, "hidden_act", "silu")
    require(c, where, "attention_bias", False, True)
    require(c, where, "mlp_bias", False, True)
    biases = {}
    if c.get("attention_bias"):
        biases |= {"qkv_bias": True, "out_bias": True}
    if c.get("mlp_bias"):
        biases["mlp_bias"] = True
    D, N = c["hidden_size"], c["num_attention_heads"]
    # transformers 5's, and the older
    rope = (c.get("rope_parameters") or {}) | (c.get("rope_scaling") or {})
    return {
        "V": c["vocab_size"],
        "D": D,
        "L": c["num_hidden_layers"],
        "N": N,
        "K": c.get("num_key_value_heads") or N,
        "H": c.get("head_dim") or D // N,
        "F": c["intermediate_size"],
        "P": c.get("max_position_embeddings", 2048),
        "eps": c.get("rms_norm_eps", 1e-6),
        "theta": float(rope.get("rope_theta") or c.get("rope_theta") or 10000.0),
        "rope_scaling": rope_scaling(c, rope, where),
    } | biases


def rope_scaling(
    c: dict[str, Any], rope: dict[str, Any], where: str | Path
) -> tuple[float, ...] | None:
    """Config.rope_scaling of RoPE's entries in a LLaMA's config.json."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    share = rope.get("partial_rotary_factor") or c.get("partial_rotary_factor") or 1.0
    if kind not in ("default", "linear", "llama3") or share != 1.0:
        raise ValueError(
            f"{where}: RoPE of type {kind!r} ({rope}) is not supported, only all of 'default', "
            "'linear' and 'llama3': use a model without it"
        )
    if kind == "default":
        return None
    if kind == "linear":
        return (float(rope["factor"]),)
    original = rope.get(ROPE_LLAMA3[-1]) or c[ROPE_LLAMA3[-1]]
    return *(float(rope[key]) for key in ROPE_LLAMA3[:-1]), original


def write_config(config: model.Config) -> dict[str, Any]:
    """config.json of a Config: what read_config reads, and transformers 4 and 5."""
    c = config
    if c.family == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": c.V,
            "n_embd": c.D,
            "n_layer": c.L,
            "n_head": c.N,
            "n_inner": c.F,
            "n_positions": c.P,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": c.eps,
            "tie_word_embeddings": c.tied,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }
    scaling = None
    if c.rope_scaling and len(c.rope_scaling) == 1:
        scaling = {"rope_type": "linear", "factor": c.rope_scaling[0]}
    elif c.rope_scaling:
        scaling = {"rope_type": "llama3"} | dict(zip(ROPE_LLAMA3, c.rope_scaling, strict=True))
    qkv_bias, out_bias = c.qkv_bias, c.out_bias
    name, kind = "LlamaForCausalLM", "llama"
    if c.qk_norm:
        name, kind = "Qwen3ForCausalLM", "qwen3"
    elif qkv_bias and not out_bias:
        name, kind = "Qwen2ForCausalLM", "qwen2"
    return {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": c.V,
        "hidden_size": c.D,
        "intermediate_size": c.F,
        "num_hidden_layers": c.L,
        "num_attention_heads": c.N,
        "num_key_value_heads": c.K,
        "head_dim": c.H,
        "hidden_act": "silu",
        "max_position_embeddings": c.P,
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "rope_scaling": scaling,
        "attention_bias": qkv_bias and out_bias,
        "mlp_bias": c.mlp_bias,
        "tie_word_embeddings": c.tied,
    }
