"""The weight table: parameter counts, initialisation, what decays; and what a user gets wrong."""

import dataclasses

import numpy as np
import pytest
from test_model import batch, one_device, reference, step

import model

# --- table ---


@pytest.mark.parametrize(
    "preset, published",
    [
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-65b", 65_285_660_672),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("tinyllama-1.1b", 1_100_048_384),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_parameter_counts_are_the_published_ones(preset, published):
    assert model.parameter_count(model.PRESETS[preset]) == published


def test_a_weight_without_a_row_raises_and_so_does_a_missing_one():
    config, weights, _, _ = reference("llama_gqa")
    with pytest.raises(KeyError, match="stray"):
        model.split_layers(weights | {"stray": weights["embed"]}, config)
    with pytest.raises(ValueError, match="stray"):
        step(config)(weights | {"stray": weights["embed"]}, *batch(config))
    with pytest.raises(ValueError, match="final_norm"):
        step(config)(
            {name: w for name, w in weights.items() if name != "final_norm"}, *batch(config)
        )


@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt2"])
def test_initialisation_follows_the_table(preset):
    """Standard deviations to 3 %: there are 128 * 128 draws or more a weight. tiny's vocabulary is
    cut to 500, so that there are padding rows.
    """
    config = dataclasses.replace(model.PRESETS[preset], V=500)
    weights = {
        n: np.asarray(w) for n, w in model.initialise(config, *one_device(config), seed=0).items()
    }
    assert {n: w.shape for n, w in weights.items()} == model.shapes(config)
    for name, row in model.weight_table(config).items():
        weight = weights[name]
        assert weight.dtype == np.float32
        if row.dims[0] == "V":
            assert np.all(weight[500:] == 0) and np.all(np.any(weight[:500] != 0, axis=1))
            weight = weight[:500]
        if row.init in ("ones", "zeros"):
            assert np.all(weight == (row.init == "ones"))
        else:
            fan_in = {"wo": 128, "w2": config.F}.get(name, 128)
            std = {
                "embedding": 0.02,
                "matrix": fan_in**-0.5,
                "residual": fan_in**-0.5 / (2 * config.L) ** 0.5,
            }[row.init]
            assert abs(weight.std() / std - 1) < 0.03, name
    assert {n for n, row in model.weight_table(config).items() if row.init == "residual"} == {
        "wo",
        "w2",
    }


def test_every_matrix_and_embedding_decays_and_no_norm_or_bias_does():
    for preset in ("tiny", "tiny-gpt2"):
        for name, row in model.weight_table(model.PRESETS[preset]).items():
            assert row.decay == (len(row.dims) == 2), name


def test_the_vocabulary_is_padded_to_a_multiple_of_128():
    def padded(V):
        return dataclasses.replace(model.PRESETS["tiny"], V=V).padded_vocab

    assert [padded(V) for V in (1, 128, 129, 32000, 50257)] == [128, 128, 256, 32000, 50304]


# --- errors ---


def test_what_a_user_can_get_wrong_is_one_line_with_the_rule(capsys):
    for change, message in [
        (dict(family="bert"), "model family 'bert' is not one of llama, gpt2"),
        (dict(N=6, K=4), "6 heads do not divide by 4 key/value heads"),
        (dict(H=15), "head size 15 is odd"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(model.PRESETS["tiny"], **change)
    assert model.main(["llama-8b"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("model.py: --model llama-8b is not a preset: use one of gpt2, ")
        and error.count("\n") == 1
    )


def test_the_program_prints_the_weight_table(capsys):
    assert model.main(["llama-7b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and lines[-1] == "6,738,415,616 weights"
    assert any(line.split() == "wq (32, 4096, 4096) L x D x NH matrix".split() for line in lines)
