"""The plan against sizes worked out here, and against what XLA compiles for 8 virtual devices.

    python -m pytest tests/test_plan.py

Compiling for a TPU needs libtpu and minutes: `python train.py --plan v5p:2x2x2 --model llama-13b
--mesh 8x1` prints both counts side by side.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
import sharding
import train
from bench import compiled
from training import batches, plan, start

BF16 = model.StepOptions(dtype=jnp.dtype("bfloat16"))


def compiled_step(
    config, compute, mesh, batch, T, accumulate=1, moment_dtype=jnp.float32, rings=()
):
    """(plan.report's arguments, the step compiled for virtual devices)."""
    layout = model.make_layout(config, *mesh, stages=rings)
    mesh = sharding.make_mesh(*mesh)
    columns = {"tokens": T + 1, "loss_mask": T + 1}
    rows = batches.batch_like(columns, batch, accumulate, mesh)
    step = train.make_step(
        config,
        mesh,
        layout,
        compute,
        train.Optimizer("adamw", 0.9, 0.95, 0.0, 1.0),
        lambda count: 1e-3,
        "token",
    )
    state = start.state_like(config, mesh, layout, moment_dtype)
    return layout, step.lower(state, rows).compile()


@pytest.mark.parametrize(
    "mesh, T, prefetch, remat, rings",
    [
        ((8, 1), 64, False, "full", ()),
        ((8, 1), 64, True, "full", ()),
        ((8, 1), 64, True, "full", (4, 2)),
        ((4, 2), 64, False, "full", ()),
        ((2, 4), 64, True, "full", ()),
        ((2, 4), 64, False, "dots", ()),
        ((2, 4), 63, False, "full", ()),
    ],
)
def test_bytes_over_the_wire_are_those_of_the_compiled_program(mesh, T, prefetch, remat, rings):
    """Within 1 %: the optimizer's, the norms' and the loss's few bytes are not counted by hand.

    The CPU compiler keeps every collective as it is written. 63: no sequence parallelism.
    """
    config = model.llama(512, 128, 3, 8, 384, 64, 1e-5)
    compute = model.StepOptions(loss_chunk=64, prefetch=prefetch, remat=remat)
    layout, program = compiled_step(config, compute, mesh, 8, T, rings=rings)
    by_hand = plan.wire(config, layout, compute, batch=8, T=T)
    in_program = compiled.bytes_received(program.as_text(), 8)
    total = sum(size for size, _ in in_program.values())
    assert abs(total / sum(by_hand.values()) - 1) < 0.01, (total, by_hand, in_program)
    if mesh == (8, 1):
        assert abs(in_program["all-gather"][0] / by_hand["weights gathered"] - 1) < 0.01
        assert total <= 1.02 * plan.fsdp_minimum(config, layout, compute)


def test_the_state_of_a_device_is_what_the_compiled_program_takes():
    config = model.llama(512, 128, 3, 8, 384, 64, 1e-5)
    layout, program = compiled_step(
        config, model.StepOptions(), (4, 2), 8, 64, moment_dtype=jnp.bfloat16
    )
    count = plan.memory(
        config, layout, model.StepOptions(), batch=8, T=64, moment_dtype=jnp.bfloat16
    )
    batch = 8 // 4 * 65 * (4 + 1) + 8 // 4 * 4
    taken = program.memory_analysis().argument_size_in_bytes
    assert 0 <= taken - batch - count["weights"] - count["moments"] < 200, (taken, count)


def test_13b_on_8_devices_by_hand():
    """13,015,864,320 weights: 12 bytes of state each, 4 of gradient; a layer's input is 4 rows of
    2048 tokens of 5120 in bfloat16.
    """
    config = model.preset("llama-13b")
    layout = model.make_layout(config, 8, 1)
    count = plan.memory(config, layout, BF16, batch=32, T=2048)
    assert (
        count["weights"] == 13_015_864_320 * 4 // 8
        and count["moments"] == 2 * count["weights"]
        and count["gradients"] == count["weights"]
    )
    assert count["saved activations"] == 40 * 4 * 2048 * 5120 * 2
    assert count["total"] == sum(
        value for name, value in count.items() if name not in ("total", plan.LATER)
    )
    assert 28 * plan.GIB < count["total"] < 32 * plan.GIB
    half = plan.memory(
        config,
        layout,
        BF16._replace(grad_dtype=jnp.dtype("bfloat16")),
        batch=32,
        T=2048,
        moment_dtype=jnp.bfloat16,
    )
    assert (
        half["gradients"] == count["gradients"] // 2
        and half["moments"] == count["moments"] * 3 // 4
    )
    four = plan.memory(config, layout, BF16, batch=32, T=2048, accumulate=4)
    assert four["saved activations"] * 4 == count["saved activations"]


def test_flops_of_7b_by_hand():
    """6.607e9 matmul weights (all but embeddings and norms), 4096 channels of attention in 32
    layers.
    """
    config = model.preset("llama-7b")
    matmul = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert plan.model_flops(config, 65536, 2048) == 65536 * (6 * matmul + 6 * 32 * 2048 * 4096)
    again = plan.hardware_flops(config, BF16, 65536, 2048) / plan.model_flops(config, 65536, 2048)
    assert 1.31 < again < 4 / 3
    assert plan.hardware_flops(
        config, BF16._replace(remat="none"), 65536, 2048
    ) == plan.model_flops(config, 65536, 2048)


def test_seconds_of_7b_by_hand():
    """On 8: arithmetic 3,587.6 T over 8 x 989 T/s, wire 43.5 GiB over 450 GB/s.

    On 16 in two servers the ring enters each once, through 8 cards of 50 GB/s; over tensor 2, 4
    data ranks share.
    """
    config, h100 = model.preset("llama-7b"), plan.DEVICES["H100"]

    def received(layout, batch):
        return plan.wire(config, layout, BF16, batch=batch, T=2048)

    eight = model.make_layout(config, 8, 1)
    work, link = plan.step_time_bounds(config, eight, BF16, h100, batch=32, T=2048)
    assert work == pytest.approx(3587.6 / 8 / 989, rel=1e-4) and link == pytest.approx(
        sum(received(eight, 32).values()) / 450e9
    )
    half, _ = plan.step_time_bounds(config, eight, BF16, h100, batch=32, T=2048, mfu=0.5)
    assert half == pytest.approx(2703.6 / 8 / 989 / 0.5, rel=1e-4)
    assert plan.hours(3600, config, eight, BF16, h100, batch=32, T=2048, mfu=0.5) == half
    servers = model.make_layout(config, 16, 1)
    assert plan.step_time_bounds(config, servers, BF16, h100, batch=64, T=2048)[1] == pytest.approx(
        sum(received(servers, 64).values()) / 400e9
    )
    pairs = model.make_layout(config, 16, 2)
    got = received(pairs, 64)
    over_data = sum(got.values()) - got["activations over tensor"]
    assert plan.step_time_bounds(config, pairs, BF16, h100, batch=64, T=2048)[1] == pytest.approx(
        max(sum(got.values()) / 450e9, over_data / 200e9)
    )
    v5p = plan.DEVICES["v5p"]  # one slice: no islands
    assert plan.step_time_bounds(config, servers, BF16, v5p, batch=64, T=2048)[1] == pytest.approx(
        sum(received(servers, 64).values()) / 300e9
    )


def test_hours_are_printed_where_steps_are_given(capsys):
    assert train.main(["--plan", "--model", "llama-7b", "--mesh", "8x1", "--steps", "2289"]) == 0
    text = capsys.readouterr().out
    config = model.preset("llama-7b")
    compute = BF16._replace(prefetch=True, mlp_rows=1)
    took = [
        plan.hours(
            2289,
            config,
            model.make_layout(config, 8, 1),
            compute,
            plan.DEVICES["A100"],
            batch=32,
            T=2048,
            mfu=mfu,
        )
        for mfu in (None, 0.5, 0.4)
    ]
    assert "hours of 2,289 steps" in text and text[text.index("hours of") :].split("A100")[
        1
    ].split()[:3] == [f"{h:.2f}" for h in took]
    assert 0.9 < took[0] < 0.92 and took[0] < took[1] < took[2]


def test_the_plan_as_json_holds_the_figures_of_the_table(capsys):
    asked = ["--plan", "--model", "llama-7b", "--mesh", "8x1", "--steps", "2289"]
    assert train.main([*asked, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert train.main(asked) == 0
    table = capsys.readouterr().out.splitlines()
    assert table == plan.lines(figures)
    h100 = figures["devices"]["H100"]
    assert figures["steps"] == 2289 and h100["hours"] < h100["hours_mfu_50"] < h100["hours_mfu_40"]
    assert h100["fits"] is True and h100["floor_s"] == max(h100["arithmetic_s"], h100["wire_s"])


def test_the_plan_says_what_the_mesh_does_not_split(capsys):
    """SmolLM2's 9 heads go over no 2 tensor ranks; with them whole, each rank has all of them."""
    asked = ["--plan", "--model", "smollm2-135m", "--batch", "4", "--block", "512"]
    assert train.main([*asked, "--mesh", "4x2"]) == 0
    note = "attention replicated over tensor: 9 heads (3 key/value) do not divide over 2 ranks"
    assert f"note: {note}\n" in capsys.readouterr().out
    assert train.main([*asked, "--mesh", "4x1"]) == 0
    assert "note:" not in capsys.readouterr().out


def test_json_without_plan_is_refused(capsys):
    assert train.main(["--json"]) == 2
    assert "--json without --plan" in capsys.readouterr().err


def test_plan_prints_every_line_and_touches_no_device(capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *a: pytest.fail("--plan asked for devices"))
    assert train.main(["--plan", "--model", "llama-13b", "--mesh", "8x1"]) == 0
    text = capsys.readouterr().out
    for line in (
        "13,015,864,320 weights",
        "32 rows of 2048",
        "weights  ",
        "moments",
        "gradients",
        "saved activations",
        "working set",
        "logits chunk",
        "total",
        "model FLOPs a step",
        "FSDP minimum",
        *plan.DEVICES,
    ):
        assert line in text, line


@pytest.mark.parametrize(
    "arguments, says",
    [
        (
            ["--mesh", "3x1"],
            "--batch 32 does not divide by 3 data ranks x 1 micro-batches: use a multiple of 3",
        ),
        (["--model", "llama-8b"], "--model llama-8b is not a preset"),
        (["--mesh", "8"], "--mesh 8 is not DATAxTENSOR"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(arguments, says, capsys):
    assert train.main(["--plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_peaks_are_found_by_what_jax_calls_a_device():
    assert (
        plan.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
        and plan.peak_flops("TPU v5 lite") == 197e12
        and plan.peak_flops("TPU v5") == 459e12
    )
    assert plan.peak_flops("cpu") is None and np.isfinite(plan.peak_flops("TPU v4"))


def test_model_flops_equal_a_count_by_hand():
    """gpt2, a token of a 1,024-token row: 12 layers of 12 D^2 = 7,077,888 and the output matrix
    50257 * 768 = 38,597,376 are 123,532,032 multiply-adds; attention 2 products of T * D, half of
    them behind the mask: 12 * 1024 * 768 = 9,437,184. Two FLOPs each, times 3 with the backward
    pass. A grouped LLaMA, term by term, below.
    """
    assert plan.model_flops(model.PRESETS["gpt2"], 1, 1024) == 6 * (123_532_032 + 9_437_184)
    D, NH, KH, F, V, L, T = 4096, 4096, 1024, 14336, 128256, 32, 2048
    forward = (
        L * (2 * D * NH + 2 * 2 * D * KH + 2 * NH * D + 3 * 2 * D * F + 2 * 2 * NH * T / 2)
        + 2 * V * D
    )
    assert plan.model_flops(model.PRESETS["llama-3-8b"], 10, T) == 10 * 3 * forward
