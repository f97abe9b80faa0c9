"""Meshes of more devices than a test has: the torus of a TPU slice, weights over 512 ranks.

    python -m pytest tests/test_mesh.py

That a weight split along its other dimension gives the same loss and gradients: tests/test_sharding
(llama_odd_ffn).
"""

import collections
import dataclasses
import itertools

import pytest
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from sharding import DATA, TENSOR
from training import plan


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax.make_mesh asks of a device of a v5p slice."""

    id: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    process_index: int = 0
    core_on_chip: int = 0
    slice_index: int = 0
    client: None = None


def links(a: Chip, b: Chip, side: int) -> int:
    """How many links of a torus lie between two chips."""
    return sum(min((p - q) % side, (q - p) % side) for p, q in zip(a.coords, b.coords, strict=True))


@pytest.mark.parametrize("data, tensor", [(64, 1), (32, 2), (16, 4)])
def test_every_mesh_of_a_slice_is_made_and_tensor_ranks_are_neighbours(data, tensor):
    chips = [Chip(i, at) for i, at in enumerate(itertools.product(range(4), repeat=3))]
    mesh = sharding.make_mesh(data, tensor, chips)
    assert mesh.axis_names == (DATA, TENSOR) and mesh.devices.shape == (data, tensor)
    assert {chip.id for chip in mesh.devices.flat} == set(range(64))
    distances = collections.Counter(
        links(a, b, 4) for rank in mesh.devices for a, b in itertools.pairwise(rank)
    )
    assert set(distances) <= {1}, distances


def test_a_weight_whose_first_dimension_does_not_divide_is_split_along_the_other():
    """LLaMA-7B's F is 256 x 43: over 512 data ranks w2 [F, D] is split along D."""
    config = model.preset("llama-7b")
    for data, spec in ((256, Spec(DATA, None)), (512, Spec(None, DATA)), (1024, Spec(None, DATA))):
        layout = model.make_layout(config, data, 1)
        assert layout.specs["w2"] == spec
        assert model.replication_notes(config, layout) == []
    assert model.make_layout(config, 32, 16).specs["w2"] == Spec(TENSOR, DATA)
    half, quarter = (
        sum(
            shard for shard, _ in plan.shard_sizes(config, model.make_layout(config, n, 1)).values()
        )
        for n in (512, 1024)
    )
    assert half == 2 * quarter == model.parameter_count(config) // 512
