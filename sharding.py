"""`8x1` -> a mesh; a weight's axes -> its partition spec; the collectives used inside shard_map; norms over shards; starting several hosts.

The mesh has two axes: "data" (each rank has its own rows of the batch, and a slice of every weight: FSDP) and "tensor" (each rank has its own heads, its own part of
the MLP and of the vocabulary: Megatron). The collectives below come in conjugate pairs with their gradients written out, so that a gradient may be taken *inside*
shard_map with check_vma=False: without that, JAX transposes a psum into another psum there and the gradients are wrong by the size of the mesh without an error.
"""

import functools
import math
import pathlib

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

DATA, TENSOR = "data", "tensor"
VIRTUAL = 8  # CPU devices made where a mesh is asked for and there is no accelerator: enough to try every kind of mesh


# ------------------------------------------------------------------------------------------------------------------ mesh


def parse_mesh(text, devices):
    """`DATAxTENSOR` -> (data, tensor); one of them may be -1 (what is left), None means every device x 1. devices: how many JAX sees.

    Raises ValueError where the text is no mesh or does not fit the devices.
    """
    if text is None:
        return devices, 1
    try:
        data, tensor = (int(n) for n in text.lower().split("x"))
        if min(data, tensor) < -1 or 0 in (data, tensor) or (data, tensor) == (-1, -1):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--mesh {text} is not DATAxTENSOR, two whole numbers of which one may be -1: use --mesh {devices}x1"
        ) from None
    if -1 in (data, tensor):
        known = max(data, tensor)
        if devices % known:
            raise ValueError(
                f"--mesh {text}: {devices} devices do not divide by {known}: use --mesh {devices}x1 or 1x{devices}"
            )
        data, tensor = (devices // known if n == -1 else n for n in (data, tensor))
    if data * tensor > devices:
        fits = [f"{devices // n}x{n}" for n in (1, 2, 4, 8) if n <= devices and devices % n == 0]
        raise ValueError(
            f"--mesh {text} needs {data * tensor} devices, JAX sees {devices}: use --mesh {' or '.join(fits[:2])}"
        )
    return data, tensor


def make_mesh(data, tensor, devices=None):
    """A mesh of the first data * tensor devices, tensor innermost (its messages are the most frequent, so its ranks are neighbours)."""
    devices = jax.devices() if devices is None else devices
    if data * tensor == len(devices):
        return jax.make_mesh(
            (data, tensor), (DATA, TENSOR), axis_types=(AxisType.Auto,) * 2, devices=devices
        )  # in the order of the interconnect
    return Mesh(
        np.array(devices[: data * tensor]).reshape(data, tensor),
        (DATA, TENSOR),
        axis_types=(AxisType.Auto,) * 2,
    )


def use_compilation_cache():
    """Keep what takes long to compile in ~/.cache/mynah/xla, where the next start finds it."""
    cache = pathlib.Path.home() / ".cache" / "mynah" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def use_precision_of(dtype):
    """Where the compute dtype is float32, products are too: accelerators would round their operands."""
    if np.dtype(dtype) == np.float32:
        jax.config.update("jax_default_matmul_precision", "highest")


def start_devices(text, coordinator=None, processes=None, process=None):
    """Join the other hosts (where there are any) and return the mesh of `text`; where JAX sees no accelerator, make virtual CPU devices first.

    On TPU pods and SLURM, JAX finds the other hosts by itself from `--coordinator auto`. Returns (mesh, note), the note a line for the user or None.
    """
    several = coordinator is not None
    if several and coordinator != "auto" and (processes is None or process is None):
        raise ValueError(
            f"--coordinator {coordinator} needs --processes N and --process I: name both, or use --coordinator auto on TPU pods and SLURM"
        )
    if several and coordinator != "auto" and not 0 <= process < processes:
        raise ValueError(
            f"--process {process} is not among --processes {processes}: number them 0 to {processes - 1}"
        )
    use_compilation_cache()
    share = 1 if text is None else VIRTUAL
    if several and text is not None:
        sizes = [int(n) for n in text.lower().split("x") if n.isdigit()]
        share = max(math.prod(sizes) // (processes or 1), 1)
    try:
        jax.config.update(
            "jax_num_cpu_devices", share
        )  # concerns the CPU backend alone; an accelerator, where there is one, still comes first
    except RuntimeError:
        pass  # a backend is running already (a program called from Python): its devices are what there is
    if several:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)
    devices = jax.devices()
    data, tensor = parse_mesh(text, len(devices))
    if several and data * tensor != len(devices):
        raise ValueError(
            f"--mesh {text} uses {data * tensor} of {len(devices)} devices; with several processes it must use all: use --mesh {len(devices)}x1"
        )
    note = None
    if devices[0].platform == "cpu":
        note = f"no accelerator: {data * tensor} virtual CPU device{'s' * (data * tensor > 1)} on this host's cores"
    return make_mesh(data, tensor, devices), note


OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"


def compiler_options(mesh):
    """Options for jax.jit that a mesh needs: on v5p, whose slices are 3-D tori, reduce-scatters would otherwise become all-reduces of twice the bytes."""
    if (
        "TPU v5" not in mesh.devices.flat[0].device_kind
        or "lite" in mesh.devices.flat[0].device_kind
    ):
        return {}
    return {
        OFFLOAD + name: True
        for name in (
            "nd_reduce_scatter",
            "reduce_scatter",
            "all_gather",
            "3d_all_gather",
            "2d_all_gather",
        )
    }


def rings(mesh):
    """Sizes of the nested groups in which the data ranks gather weights, outermost first: (64,) is one group of all, (16, 4) rings of 4 neighbours and then 16 across the rings.

    A TPU's compiler makes an all-reduce of twice the bytes (and keeps a slice of it) out of a gather or reduce-scatter over a whole large slice, not out of one over a part
    of it. The rule goes by size alone: on TPUs, more than 8 ranks are taken as up to 16, and at most a quarter of them, across rings of the others, which are divided in turn.
    Compiled for v5e, v5p and v6e slices of 16 to 1,024 chips, this gives no all-reduce. Each group moves what it would in one step: the bytes are the same.
    """
    sizes = [mesh.devices.shape[0]]
    while mesh.devices.flat[0].platform == "tpu" and sizes[-1] > 8:
        across = max(n for n in range(1, min(16, sizes[-1] // 4) + 1) if sizes[-1] % n == 0)
        if across == 1:
            break
        sizes[-1:] = [across, sizes[-1] // across]
    return tuple(sizes)


# ----------------------------------------------------------------------------------------------------------------- specs


def partition(shape, tensor_dim, data_dim, mesh_shape, splits):
    """The partition spec of one weight (without its layer axis).

    shape: its sizes. tensor_dim: the dimension split over "tensor", or None; splits: whether that split is possible (whole heads on each rank). data_dim: the
    dimension split over "data". Where both fall on one dimension, tensor is the outer split: gathering over data then gives this tensor rank's contiguous slice.
    What does not divide is left whole (replicated).
    """
    data, tensor = mesh_shape
    axes = [()] * len(shape)
    if tensor_dim is not None and splits:
        axes[tensor_dim] = (TENSOR,)
    local = shape[data_dim] // (tensor if axes[data_dim] else 1)
    if local % data == 0:
        axes[data_dim] += (DATA,)
    return Spec(*(a[0] if len(a) == 1 else a or None for a in axes))


def axes_of(spec):
    """The mesh axes that a spec splits over, each once."""
    return tuple(
        name
        for entry in spec
        if entry is not None
        for name in ((entry,) if isinstance(entry, str) else entry)
    )


def dim_over(spec, axis):
    """Which dimension of the array `spec` splits over `axis`; None where it does not."""
    for dim, entry in enumerate(spec):
        if entry == axis or (isinstance(entry, tuple) and axis in entry):
            return dim
    return None


def shardings(specs, mesh):
    """A tree of specs as a tree of NamedShardings."""
    return jax.tree.map(
        lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, Spec)
    )


# ------------------------------------------------------------------------------ collectives over "data": weights (FSDP)


def groups(rings):
    """Ring size by ring size, outermost first: the data ranks of each group. None is one group of all."""
    if len(rings) < 2:
        return [None]
    ranks = np.arange(math.prod(rings)).reshape(rings)
    return [
        np.moveaxis(ranks, level, -1).reshape(-1, size).tolist() for level, size in enumerate(rings)
    ]


def gather_weight(shard, spec, dtype, rings=()):
    """This tensor rank's whole weight in the compute dtype from its data shard: cast first, so half the bytes travel in bfloat16. rings: of the mesh, see there."""
    dim = dim_over(spec, DATA)
    weight = shard.astype(dtype)
    # w[..., X/d, ...] -> w[..., X, ...]: all-gather over "data", innermost ring first: the shards are in the order of one gather
    for ranks in reversed(groups(rings)) if dim is not None else ():
        weight = lax.all_gather(weight, DATA, axis=dim, tiled=True, axis_index_groups=ranks)
    return weight


def scatter_gradient(gradient, spec, dtype, rings=()):
    """The sum over the data ranks of a whole weight's gradient, each rank keeping its own shard; reduced in `dtype`."""
    dim = dim_over(spec, DATA)
    gradient = gradient.astype(dtype)
    if dim is None:  # a weight that is whole on every rank: all-reduce
        return lax.psum(gradient, DATA)
    # dw[..., X, ...] partial over data -> dw[..., X/d, ...]: reduce-scatter over "data", in the reverse order of the gather
    for ranks in groups(rings):
        gradient = lax.psum_scatter(
            gradient, DATA, scatter_dimension=dim, tiled=True, axis_index_groups=ranks
        )
    return gradient


def pooled_sum(x, spec):
    """psum of a per-shard sum over the axes the weight is split over: each element counts once, a replicated weight's too."""
    axes = axes_of(spec)
    return lax.psum(x, axes) if axes else x


# ------------------------------------------------------------------- collectives over "tensor": activations (Megatron)


@jax.custom_vjp
def copy_in(x):
    """Enter a tensor-parallel region: whole on every rank; backwards the ranks' partial gradients are summed (Megatron's f)."""
    return x


copy_in.defvjp(lambda x: (x, None), lambda _, g: (lax.psum(g, TENSOR),))


@jax.custom_vjp
def sum_out(x):
    """Leave a tensor-parallel region: the ranks' partial results are summed; backwards each rank takes the gradient as it is (Megatron's g)."""
    return lax.psum(x, TENSOR)


sum_out.defvjp(lambda x: (lax.psum(x, TENSOR), None), lambda _, g: (g,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_in(x, dim):
    """Enter, sequence-parallel: each rank's slice of `dim` -> whole; backwards partial gradients are summed and sliced (reduce-scatter)."""
    return lax.all_gather(x, TENSOR, axis=dim, tiled=True)


gather_in.defvjp(
    lambda x, dim: (gather_in(x, dim), None),
    lambda dim, _, g: (lax.psum_scatter(g, TENSOR, scatter_dimension=dim, tiled=True),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scatter_out(x, dim):
    """Leave, sequence-parallel: partial results summed, each rank keeps its slice of `dim`; backwards the slices are gathered."""
    return lax.psum_scatter(x, TENSOR, scatter_dimension=dim, tiled=True)


scatter_out.defvjp(
    lambda x, dim: (scatter_out(x, dim), None),
    lambda dim, _, g: (lax.all_gather(g, TENSOR, axis=dim, tiled=True),),
)
