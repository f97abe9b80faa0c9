"""The weight table: all that is known of each weight, in one row; a weight without a row raises.

Initialisation, the split over a mesh, parameter counts and decay masks are read from it. Names in
other projects' files stand in checkpoint/names.py. LETTERS  those of model.py.
"""

import math
from typing import NamedTuple

from families.config import Config


class Weight(NamedTuple):
    """All that is known of one weight. `sizes` turns the letters of its dimensions into numbers."""

    dims: tuple  # letters of its dimensions, without the layer axis
    layered: bool  # stacked over the L layers on a leading axis
    data: int  # the dimension split over "data"
    tensor: int | None  # the dimension split over "tensor", in whole heads where it is NH or KH
    init: str  # "embedding", "matrix", "residual" (writes to the residual stream), "ones", "zeros"
    decay: bool  # decays in adamw-scaled and adamw (easylm decays everything, as EasyLM does)


def weight_table(config: Config) -> dict[str, Weight]:
    """name -> Weight of every weight of the model, in the order of the forward pass.

    Matrices that write to the residual stream are split over data on their major dimension: a
    reduce-scatter on the minor one becomes an all-reduce on TPUs.
    """
    c, llama, gpt2 = config, config.family == "llama", config.family == "gpt2"
    # fmt: off
    rows = {  # name: dims, layered, data, tensor, init, decay; whether this model has it
        "embed": (("V", "D"), False, 1, 0, "embedding", True, True),
        "pos": (("P", "D"), False, 1, None, "embedding", True, gpt2),
        "attn_norm": (("D",), True, 0, None, "ones", False, True),
        "attn_norm_b": (("D",), True, 0, None, "zeros", False, gpt2),
        "wq": (("D", "NH"), True, 0, 1, "matrix", True, True),
        "bq": (("NH",), True, 0, 0, "zeros", False, gpt2 or c.qkv_bias),
        "wk": (("D", "KH"), True, 0, 1, "matrix", True, True),
        "bk": (("KH",), True, 0, 0, "zeros", False, gpt2 or c.qkv_bias),
        "wv": (("D", "KH"), True, 0, 1, "matrix", True, True),
        "bv": (("KH",), True, 0, 0, "zeros", False, gpt2 or c.qkv_bias),
        "q_norm": (("H",), True, 0, None, "ones", False, c.qk_norm),
        "k_norm": (("H",), True, 0, None, "ones", False, c.qk_norm),
        "wo": (("NH", "D"), True, 0, 0, "residual", True, True),
        "bo": (("D",), True, 0, None, "zeros", False, gpt2 or c.out_bias),
        "mlp_norm": (("D",), True, 0, None, "ones", False, True),
        "mlp_norm_b": (("D",), True, 0, None, "zeros", False, gpt2),
        "w1": (("D", "F"), True, 0, 1, "matrix", True, True),
        "b1": (("F",), True, 0, 0, "zeros", False, gpt2 or c.mlp_bias),
        "w3": (("D", "F"), True, 0, 1, "matrix", True, llama),
        "b3": (("F",), True, 0, 0, "zeros", False, llama and c.mlp_bias),
        "w2": (("F", "D"), True, 0, 0, "residual", True, True),
        "b2": (("D",), True, 0, None, "zeros", False, gpt2 or c.mlp_bias),
        "final_norm": (("D",), False, 0, None, "ones", False, True),
        "final_norm_b": (("D",), False, 0, None, "zeros", False, gpt2),
        "head": (("V", "D"), False, 1, 0, "matrix", True, not c.tied),
    }
    # fmt: on
    return {name: Weight(*row) for name, (*row, present) in rows.items() if present}


def sizes(config: Config, padded: bool = True) -> dict[str, int]:
    """letter -> number; V padded or true."""
    c = config
    V = c.padded_vocab if padded else c.V
    return {"V": V, "D": c.D, "F": c.F, "P": c.P, "H": c.H, "NH": c.N * c.H, "KH": c.K * c.H}


def shapes(config: Config, padded: bool = True) -> dict[str, tuple]:
    """name -> shape of the whole weight, with its leading layer axis where it is layered."""
    size = sizes(config, padded)
    return {
        name: (config.L,) * row.layered + tuple(size[d] for d in row.dims)
        for name, row in weight_table(config).items()
    }


def parameter_count(config: Config) -> int:
    """Number of weights, padding rows left out."""
    return sum(math.prod(s) for s in shapes(config, padded=False).values())
