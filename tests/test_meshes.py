"""Meshes as they are written, and how weights are split over them."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from sharding import DATA, TENSOR

CPUS = jax.devices("cpu")

# --- meshes ---


@pytest.mark.parametrize(
    "text, devices, mesh",
    [
        ("8x1", 8, (8, 1)),
        ("2X4", 8, (2, 4)),
        ("-1x4", 8, (2, 4)),
        ("2x-1", 8, (2, 4)),
        ("-1x1", 6, (6, 1)),
        ("1x1", 8, (1, 1)),  # fewer than there are
        ("2x3", 8, (2, 3)),
        (None, 8, (8, 1)),
    ],
)
def test_a_mesh_is_read_as_data_x_tensor(text, devices, mesh):
    assert sharding.parse_mesh(text, devices) == mesh


@pytest.mark.parametrize(
    "text", ["8", "8x", "x1", "8x1x1", "0x8", "8x0", "-2x4", "-1x-1", "axb", "8,1", "", "2.0x4"]
)
def test_what_is_no_mesh_is_refused_with_the_rule_and_a_remedy(text):
    with pytest.raises(ValueError) as error:
        sharding.parse_mesh(text, 8)
    rule = "is not DATAxTENSOR, two whole numbers of which one may be -1: use --mesh 8x1"
    assert str(error.value) == f"--mesh {text} {rule}"


@pytest.mark.parametrize(
    "text, devices, message",
    [
        ("8x2", 8, "--mesh 8x2 needs 16 devices, JAX sees 8: use --mesh 8x1 or 4x2"),
        ("2x1", 1, "--mesh 2x1 needs 2 devices, JAX sees 1: use --mesh 1x1"),
        ("-1x3", 8, "--mesh -1x3: 8 devices do not divide by 3: use --mesh 8x1 or 1x8"),
        ("16x-1", 8, "--mesh 16x-1: 8 devices do not divide by 16: use --mesh 8x1 or 1x8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_what_would(text, devices, message):
    with pytest.raises(ValueError) as error:
        sharding.parse_mesh(text, devices)
    assert str(error.value) == message


def test_a_mesh_has_tensor_innermost_and_may_leave_devices_over():
    def ids(mesh):
        return [[device.id for device in row] for row in mesh.devices]

    assert ids(sharding.make_mesh(2, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert ids(sharding.make_mesh(2, 3)) == [[0, 1, 2], [3, 4, 5]]
    assert sharding.make_mesh(2, 3).axis_names == (DATA, TENSOR)


@pytest.mark.parametrize(
    "data, stages",
    [
        (8, (8,)),
        (16, (4, 4)),
        (32, (8, 4)),
        (64, (16, 4)),
        (128, (16, 8)),
        (256, (16, 4, 4)),
        (512, (16, 8, 4)),
        (12, (3, 4)),
        (10, (2, 5)),
        (13, (13,)),
        (1, (1,)),
    ],
)
def test_more_than_8_data_ranks_gather_in_stages_on_tpus_and_at_once_elsewhere(data, stages):
    def mesh(platform):
        return types.SimpleNamespace(
            devices=np.full((data, 2), types.SimpleNamespace(platform=platform))
        )

    assert sharding.gather_stages(mesh("tpu")) == stages and np.prod(stages) == data
    assert sharding.gather_stages(mesh("gpu")) == (data,)


def test_groups_are_neighbours_and_then_the_ranks_across_them():
    assert sharding.axis_groups((2, 3)) == [[[0, 3], [1, 4], [2, 5]], [[0, 1, 2], [3, 4, 5]]]
    assert sharding.axis_groups((6,)) == sharding.axis_groups(()) == [None]


def test_starting_devices_gives_the_mesh_and_says_that_they_are_virtual():
    mesh, note = sharding.start_devices("4x2")
    assert dict(mesh.shape) == {DATA: 4, TENSOR: 2} and note.startswith(
        "no accelerator: 8 virtual CPU devices"
    )
    assert dict(sharding.start_devices(None)[0].shape) == {DATA: 8, TENSOR: 1}


@pytest.mark.parametrize(
    "rows, cores, devices",
    [(8, 2, 2), (8, 3, 2), (9, 4, 3), (7, 4, 1), (32, 64, 8), (1, 8, 1), (0, 2, 1), (8, 1, 1)],
)
def test_rows_are_shared_evenly_by_at_most_one_device_a_core(rows, cores, devices):
    assert sharding.cpu_devices(rows, cores) == devices


@pytest.mark.parametrize(
    "text, coordinator, devices",
    [
        (None, None, 2),
        ("1x1", None, 1),
        ("2x2", None, 4),
        ("-1x1", None, 8),
        (None, "auto", 1),
        ("4x1", "auto", 4),
    ],
)
def test_cpu_devices_are_as_many_as_the_mesh_has_and_without_one_a_core_each(
    monkeypatch, text, coordinator, devices
):
    asked = {}
    monkeypatch.setattr(sharding, "usable_cores", lambda: 3)
    monkeypatch.setattr(sharding.jax.config, "update", asked.__setitem__)
    monkeypatch.setattr(sharding.jax.distributed, "initialize", lambda: None)
    monkeypatch.setattr(sharding.jax, "devices", lambda: CPUS[: asked["jax_num_cpu_devices"]])
    mesh, note = sharding.start_devices(text, coordinator, rows=8)
    assert asked["jax_num_cpu_devices"] == devices
    assert mesh.devices.size == devices
    assert note and note.startswith("no accelerator")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("8x1", "host:1", None, 0), "--coordinator host:1 needs --processes N and --process I"),
        (("8x1", "host:1", 2, None), "--coordinator host:1 needs --processes N and --process I"),
        (("8x1", "host:1", 2, 2), "--process 2 is not among --processes 2: number them 0 to 1"),
    ],
)
def test_several_processes_need_to_be_numbered(arguments, message):
    with pytest.raises(ValueError, match=message):
        sharding.start_devices(*arguments)


# --- specs ---


def specs_of(config, data, tensor):
    return model.make_layout(config, data, tensor).specs


def notes_of(config, data, tensor):
    return model.replication_notes(config, model.make_layout(config, data, tensor))


def test_llama_is_split_over_both_axes():
    specs = specs_of(model.PRESETS["llama-7b"], 4, 2)
    column, row, norm, vocab = (
        Spec(DATA, TENSOR),
        Spec((TENSOR, DATA), None),
        Spec(DATA),
        Spec(TENSOR, DATA),
    )
    assert {specs[n] for n in ("wq", "wk", "wv", "w1", "w3")} == {column}
    assert {specs[n] for n in ("wo", "w2")} == {row}
    assert {specs[n] for n in ("attn_norm", "mlp_norm", "final_norm")} == {norm}
    assert {specs[n] for n in ("embed", "head")} == {vocab}
    assert notes_of(model.PRESETS["llama-7b"], 4, 2) == []


def test_gpt2_xl_has_25_heads_so_its_attention_is_replicated_over_tensor_and_its_mlp_split():
    config = model.PRESETS["gpt2-xl"]
    specs = specs_of(config, 4, 2)
    assert {specs[n] for n in ("wq", "wk", "wv", "wo")} == {Spec(DATA, None)}
    assert {specs[n] for n in ("bq", "bk", "bv", "bo", "b2", "attn_norm", "attn_norm_b")} == {
        Spec(DATA)
    }
    assert (specs["w1"], specs["b1"], specs["w2"]) == (
        Spec(DATA, TENSOR),
        Spec((TENSOR, DATA)),
        Spec((TENSOR, DATA), None),
    )
    assert (specs["embed"], specs["pos"]) == (Spec(TENSOR, DATA), Spec(None, DATA))
    assert notes_of(config, 4, 2) == [
        "attention replicated over tensor: 25 heads (25 key/value) do not divide over 2 ranks"
    ]
    assert notes_of(config, 8, 1) == []


def test_fewer_key_value_heads_than_ranks_are_replicated_and_the_query_heads_still_split():
    config = model.PRESETS["llama-3-8b"]  # 8 kv heads
    specs = specs_of(config, 1, 16)
    assert specs["wk"] == specs["wv"] == Spec(DATA, None) and specs["wq"] == Spec(DATA, TENSOR)
    assert notes_of(config, 1, 16) == [
        "key/value heads replicated over tensor: 8 heads for 16 ranks"
    ]
    assert specs_of(config, 1, 8)["wk"] == Spec(DATA, TENSOR) and notes_of(config, 1, 8) == []


def test_what_does_not_divide_is_left_whole_and_a_note_says_so():
    config = dataclasses.replace(model.PRESETS["tiny"], D=20, F=42, V=100)
    specs = specs_of(config, 8, 4)
    assert (
        specs["w1"] == Spec(None, None)
        and specs["attn_norm"] == Spec(None)
        and specs["embed"] == Spec((TENSOR, DATA), None)
    )
    notes = notes_of(config, 8, 4)
    assert notes[0] == "MLP replicated over tensor: F 42 does not divide by 4"
    assert notes[1].startswith("replicated over data (not divisible by 8): attn_norm, mlp_norm, w1")
    assert notes_of(config, 1, 3) == [
        "attention replicated over tensor: 8 heads (8 key/value) do not divide over 3 ranks",
        "vocabulary replicated over tensor: 128 rows do not divide by 3",
    ]


def test_replicas_along_data_are_split_over_tensor_alone():
    specs = model.make_layout(model.PRESETS["llama-7b"], 4, 2, fsdp=False).specs
    assert (specs["wq"], specs["wo"], specs["attn_norm"]) == (
        Spec(None, TENSOR),
        Spec(TENSOR, None),
        Spec(None),
    )


def test_every_preset_fits_every_mesh_of_eight_devices():
    """Each split divides its dimension, and tensor splits are of whole heads."""
    for config in model.PRESETS.values():
        for data, tensor in [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8)]:
            layout = model.make_layout(config, data, tensor)
            for name, spec in layout.specs.items():
                dims, shape = model.weight_table(config)[name].dims, model.shapes(config)[name]
                for letter, size, axes in zip(dims, shape[-len(dims) :], spec, strict=True):
                    axes = (axes,) if isinstance(axes, str) else axes or ()
                    parts = np.prod([{DATA: data, TENSOR: tensor}[a] for a in axes], dtype=int)
                    assert size % parts == 0
                    if TENSOR in axes and letter in ("NH", "KH"):
                        assert size // tensor % config.H == 0
