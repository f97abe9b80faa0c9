"""How a model lies on a mesh: which dimension of which weight is split over which axis.

LETTERS  those of model.py.
"""

from typing import NamedTuple

from jax.sharding import PartitionSpec as Spec

import sharding
from families.config import Config
from families.weights import sizes, weight_table
from sharding import DATA, TENSOR


class Layout(NamedTuple):
    """How a model lies on a mesh: static facts that the local program branches on."""

    specs: dict[str, Spec]  # name -> its spec, without the layer axis
    data: int  # size of the data axis
    tensor: int  # size of the tensor axis
    attention: bool  # heads split over tensor
    # kv heads split over tensor; where only the heads are (fewer kv heads than ranks), each rank
    # takes the kv head it needs
    kv: bool
    mlp: bool
    vocab: bool
    # how data ranks gather weights (sharding.gather_stages), () all at once: the way weights
    # travel, not what each rank holds
    stages: tuple = ()

    def stacked(self, config: Config) -> dict[str, Spec]:
        """name -> spec of the whole array, layer axis included."""
        return {
            name: Spec(None, *self.specs[name]) if row.layered else self.specs[name]
            for name, row in weight_table(config).items()
        }


def make_layout(
    config: Config,
    data: int,
    tensor: int,
    fsdp: bool = True,
    stages: tuple = (),
    major: bool = False,
) -> Layout:
    """The Layout of a config on a mesh of data x tensor.

    fsdp False: weights are whole along data (replicas, for evaluation). major: all are split over
    data on their first dimension, because CPUs lay a matrix out anew to gather its columns.
    """
    N, K = config.N, config.K
    attention = N % tensor == 0 and (K % tensor == 0 or tensor % K == 0)
    kv = attention and K % tensor == 0
    mlp, vocab = config.F % tensor == 0, config.padded_vocab % tensor == 0
    splits = {"NH": attention, "KH": kv, "F": mlp, "V": vocab}
    size = sizes(config)
    specs = {}
    for name, row in weight_table(config).items():
        split = row.tensor is not None and tensor > 1 and splits[row.dims[row.tensor]]
        shape = tuple(size[d] for d in row.dims)
        if fsdp:
            mesh_shape = data, tensor
            specs[name] = sharding.partition(
                shape, row.tensor, 0 if major else row.data, mesh_shape, split
            )
        else:
            over = [TENSOR if split and dim == row.tensor else None for dim in range(len(shape))]
            specs[name] = Spec(*over)
    return Layout(specs, data, tensor, attention, kv, mlp, vocab, stages)


def replication_notes(config: Config, layout: Layout) -> list[str]:
    """Lines that say what the mesh could not split: for the start-up table."""
    lines, t = [], layout.tensor
    if t > 1 and not layout.attention:
        lines.append(
            f"attention replicated over tensor: {config.N} heads ({config.K} key/value) "
            f"do not divide over {t} ranks"
        )
    elif t > 1 and not layout.kv:
        lines.append(f"key/value heads replicated over tensor: {config.K} heads for {t} ranks")
    if t > 1 and not layout.mlp:
        lines.append(f"MLP replicated over tensor: F {config.F} does not divide by {t}")
    if t > 1 and not layout.vocab:
        rows = config.padded_vocab
        lines.append(f"vocabulary replicated over tensor: {rows} rows do not divide by {t}")
    replicated = [n for n, s in layout.specs.items() if sharding.dim_over(s, DATA) is None]
    if layout.data > 1 and replicated:
        names = ", ".join(replicated)
        lines.append(f"replicated over data (not divisible by {layout.data}): {names}")
    return lines
