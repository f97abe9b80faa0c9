"""Meshes, specs, the collectives used inside shard_map, and starting devices on one or more hosts.

The mesh has two axes. "data": each rank has its own rows of the batch, and a slice of every weight
(FSDP). "tensor": each rank has its own heads, its own part of the MLP and of the vocabulary
(Megatron). The collectives below come in conjugate pairs with their gradients written out, so that
a gradient may be taken *inside* shard_map with check_vma=False. Without that, JAX transposes a psum
into another psum there, and the gradients are wrong by the size of the mesh without an error.
"""

import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from jax.typing import DTypeLike

DATA, TENSOR = "data", "tensor"
# CPU devices made where a mesh is asked for and there is no accelerator: enough for every kind
VIRTUAL = 8


# --- mesh ---


def parse_mesh(text: str | None, devices: int) -> tuple[int, int]:
    """`DATAxTENSOR` -> (data, tensor); one of them may be -1 (what is left).

    None means every device x 1. devices: how many JAX sees. ValueError where the text is no mesh or
    does not fit the devices.
    """
    if text is None:
        return devices, 1
    try:
        data, tensor = (int(n) for n in text.lower().split("x"))
        if min(data, tensor) < -1 or 0 in (data, tensor) or (data, tensor) == (-1, -1):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--mesh {text} is not DATAxTENSOR, two whole numbers of which one may be -1: "
            f"use --mesh {devices}x1"
        ) from None
    if -1 in (data, tensor):
        known = max(data, tensor)
        if devices % known:
            raise ValueError(
                f"--mesh {text}: {devices} devices do not divide by {known}: "
                f"use --mesh {devices}x1 or 1x{devices}"
            )
        data, tensor = (devices // known if n == -1 else n for n in (data, tensor))
    if data * tensor > devices:
        fits = [f"{devices // n}x{n}" for n in (1, 2, 4, 8) if n <= devices and devices % n == 0]
        raise ValueError(
            f"--mesh {text} needs {data * tensor} devices, JAX sees {devices}: "
            f"use --mesh {' or '.join(fits[:2])}"
        )
    return data, tensor


def make_mesh(data: int, tensor: int, devices: list | None = None) -> Mesh:
    """A mesh of the first data * tensor devices.

    Tensor is innermost: its messages are the most frequent, so its ranks are neighbours.
    """
    devices = jax.devices() if devices is None else devices
    axes = AxisType.Auto, AxisType.Auto
    grid = np.array(devices[: data * tensor]).reshape(data, tensor)
    if data * tensor == len(devices):  # in the order of the interconnect
        try:
            return jax.make_mesh((data, tensor), (DATA, TENSOR), axis_types=axes, devices=devices)
        except NotImplementedError:  # 32 x 2 on a torus of 4 x 4 x 4: one of its axes is shared
            shape = (data, tensor)
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, (DATA, TENSOR), axis_types=axes)


def use_compilation_cache() -> None:
    """Keep every compiled program in ~/.cache/mynah/xla, where the next start finds it.

    Small ones too: a start compiles dozens of them, which together take seconds.
    """
    cache = pathlib.Path.home() / ".cache" / "mynah" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def use_precision_of(dtype: DTypeLike) -> None:
    """Where the compute dtype is float32, products are too.

    Accelerators would round their operands.
    """
    if np.dtype(dtype) == np.float32:
        jax.config.update("jax_default_matmul_precision", "highest")


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_devices(rows: int, cores: int) -> int:
    """How many CPU devices share `rows` evenly, at most one a core.

    Each takes its rows from end to end on a core of its own. Within one device the cores would wait
    for one another after every operation.
    """
    return max(n for n in range(1, max(min(rows, cores, VIRTUAL), 1) + 1) if rows % n == 0)


def start_devices(
    text: str | None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    rows: int = 1,
) -> tuple[Mesh, str | None]:
    """Join the other hosts (where there are any) -> (mesh of `text`, a line for the user or None).

    Where JAX sees no accelerator, virtual CPU devices are made first. rows: of a micro-batch, which
    a training spreads over the cores. On TPU pods and SLURM, JAX finds the other hosts by itself
    from `--coordinator auto`.
    """
    several = coordinator is not None
    if several and coordinator != "auto":
        check_process(coordinator, processes, process)
    use_compilation_cache()
    sizes = [int(n) for n in (text or "").lower().split("x") if n.isdigit()]
    devices_asked = math.prod(sizes)
    if several:
        share = max(devices_asked // (processes or 1), 1)
    elif text is None:
        share = cpu_devices(rows, usable_cores())
    else:  # no more than the mesh has: each brings a thread, which the others then wait for
        share = devices_asked if len(sizes) == 2 and 0 < devices_asked < VIRTUAL else VIRTUAL
    try:
        # concerns the CPU backend alone; an accelerator, where there is one, still comes first
        jax.config.update("jax_num_cpu_devices", share)
    except RuntimeError:
        pass  # a backend is running already (called from Python): its devices are what there is
    if several:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)
    devices = jax.devices()
    data, tensor = parse_mesh(text, len(devices))
    n = data * tensor
    if several and n != len(devices):
        raise ValueError(
            f"--mesh {text} uses {n} of {len(devices)} devices; with several processes it must "
            f"use all: use --mesh {len(devices)}x1"
        )
    note = None
    if devices[0].platform == "cpu":
        note = f"no accelerator: {n} virtual CPU device{'s' * (n > 1)} on this host's cores"
    return make_mesh(data, tensor, devices), note


def check_process(coordinator: str, processes: int | None, process: int | None) -> None:
    if processes is None or process is None:
        raise ValueError(
            f"--coordinator {coordinator} needs --processes N and --process I: "
            "name both, or use --coordinator auto on TPU pods and SLURM"
        )
    if not 0 <= process < processes:
        raise ValueError(
            f"--process {process} is not among --processes {processes}: "
            f"number them 0 to {processes - 1}"
        )


OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"
OFFLOADED = "nd_reduce_scatter", "reduce_scatter", "all_gather", "3d_all_gather", "2d_all_gather"


GPUS = ("gpu", "cuda")  # what devices, and devices compiled for without one, call their platform
IN_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"


def decoding_options(mesh: Mesh) -> dict[str, Any]:
    """Options for jax.jit of a program that loops over tokens.

    On GPUs the whole loop becomes one CUDA graph: the host does not look at every token.
    """
    on_gpu = mesh.devices.flat[0].platform in GPUS
    return {"xla_gpu_enable_command_buffer": IN_GRAPHS} if on_gpu else {}


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Options for jax.jit that a mesh needs.

    On v5p, whose slices are 3-D tori, reduce-scatters would otherwise become all-reduces of twice
    the bytes.
    """
    if mesh.devices.flat[0].platform in GPUS:
        # else a product that is used and also kept in a stack of layers is computed twice
        return {"xla_gpu_enable_dynamic_slice_fusion": False}
    kind = mesh.devices.flat[0].device_kind
    if "TPU v5" not in kind or "lite" in kind:
        return {}
    return {OFFLOAD + name: True for name in OFFLOADED}


def gather_stages(mesh: Mesh) -> tuple:
    """Sizes of the nested stages in which the data ranks gather weights, outermost first.

    (64,) is one group of all; (16, 4) gathers among 4 neighbours, then across 16 such groups. A
    TPU's compiler makes an all-reduce of twice the bytes (and keeps a slice of it) out of a gather
    or reduce-scatter over a whole large slice, not out of one over a part of it.

    On TPUs an axis of more than 8 ranks is factored into stages. The outer stage gets the largest
    divisor up to min(16, n / 4), the rest is factored in turn: 64 becomes (16, 4). Compiled for
    v5e, v5p and v6e slices of 16 to 1,024 chips, this gives no all-reduce. Each stage moves what it
    would in one step, so the bytes are the same.
    """
    stages = [mesh.devices.shape[0]]
    while mesh.devices.flat[0].platform == "tpu" and stages[-1] > 8:
        outer = max(n for n in range(1, min(16, stages[-1] // 4) + 1) if stages[-1] % n == 0)
        if outer == 1:
            break
        stages[-1:] = [outer, stages[-1] // outer]
    return tuple(stages)


# --- specs ---


def partition(
    shape: tuple, tensor_dim: int | None, data_dim: int, mesh_shape: tuple, splits: bool
) -> Spec:
    """The spec of one weight (without its layer axis).

    shape: its sizes. tensor_dim: the dimension split over "tensor", or None; splits: whether that
    split is possible (whole heads on each rank). data_dim: the dimension split over "data", or the
    first other one that divides. Where both fall on one dimension, tensor is the outer split:
    gathering over data then gives this tensor rank's contiguous slice. What does not divide is left
    whole (replicated).
    """
    data, tensor = mesh_shape
    axes: list[tuple[str, ...]] = [()] * len(shape)
    if tensor_dim is not None and splits:
        axes[tensor_dim] = (TENSOR,)
    for dim in (data_dim, *(d for d in range(len(shape)) if d != data_dim)):
        if shape[dim] // (tensor if axes[dim] else 1) % data == 0:
            axes[dim] += (DATA,)
            break
    return Spec(*(a[0] if len(a) == 1 else a or None for a in axes))


def axes_of(spec: Spec) -> tuple:
    """The mesh axes that a spec splits over, each once."""
    return tuple(
        name
        for entry in spec
        if entry is not None
        for name in ((entry,) if isinstance(entry, str) else entry)
    )


def dim_over(spec: Spec, axis: str) -> int | None:
    """Which dimension of the array `spec` splits over `axis`; None where it does not."""
    for dim, entry in enumerate(spec):
        if entry == axis or (isinstance(entry, tuple) and axis in entry):
            return dim
    return None


def shardings(specs: Any, mesh: Mesh) -> Any:
    """A tree of specs as a tree of NamedShardings."""
    as_sharding = functools.partial(NamedSharding, mesh)
    return jax.tree.map(as_sharding, specs, is_leaf=lambda s: isinstance(s, Spec))


# --- collectives over "data": weights (FSDP) ---


def axis_groups(stages: tuple) -> list:
    """For each stage, outermost first, the data ranks of its groups. None is one group of all."""
    if len(stages) < 2:
        return [None]
    ranks = np.arange(math.prod(stages)).reshape(stages)
    return [
        np.moveaxis(ranks, level, -1).reshape(-1, size).tolist()
        for level, size in enumerate(stages)
    ]


def gather_weight(shard: jax.Array, spec: Spec, dtype: DTypeLike, stages: tuple = ()) -> jax.Array:
    """This tensor rank's whole weight in the compute dtype, from its data shard.

    It is cast first, so half the bytes travel in bfloat16. stages: of gather_stages.
    """
    dim = dim_over(spec, DATA)
    weight = shard.astype(dtype)
    # w[..., X/d, ...] -> w[..., X, ...]: all-gather over "data", the innermost stage first, which
    # leaves the shards in the order of one gather
    if dim is None or lax.axis_size(DATA) == 1:
        return weight
    for ranks in reversed(axis_groups(stages)):
        weight = lax.all_gather(weight, DATA, axis=dim, tiled=True, axis_index_groups=ranks)
    return weight


def scatter_gradient(
    gradient: jax.Array, spec: Spec, dtype: DTypeLike, stages: tuple = ()
) -> jax.Array:
    """The sum over the data ranks of a whole weight's gradient, each rank keeping its own shard.

    Reduced in `dtype`.
    """
    dim = dim_over(spec, DATA)
    gradient = gradient.astype(dtype)
    if lax.axis_size(DATA) == 1:  # XLA's CPU compiler would copy it
        return gradient
    if dim is None:  # a weight that is whole on every rank: all-reduce
        return lax.psum(gradient, DATA)
    # dw[..., X, ...] partial over data -> dw[..., X/d, ...]: reduce-scatter over "data", in the
    # reverse order of the gather
    for ranks in axis_groups(stages):
        gradient = lax.psum_scatter(
            gradient, DATA, scatter_dimension=dim, tiled=True, axis_index_groups=ranks
        )
    return gradient


# --- collectives over "tensor": activations (Megatron) ---


@jax.custom_vjp
def copy_in(x: jax.Array) -> jax.Array:
    """Enter a tensor-parallel region with x whole on every rank.

    Backwards the ranks' partial gradients are summed (Megatron's f).
    """
    return x


copy_in.defvjp(lambda x: (x, None), lambda _, g: (lax.psum(g, TENSOR),))


@jax.custom_vjp
def sum_out(x: jax.Array) -> jax.Array:
    """Exit a tensor-parallel region: the ranks' partial results are summed.

    Backwards each rank takes the gradient as it is (Megatron's g).
    """
    return lax.psum(x, TENSOR)


sum_out.defvjp(lambda x: (lax.psum(x, TENSOR), None), lambda _, g: (g,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_in(x: jax.Array, dim: int) -> jax.Array:
    """Enter, sequence-parallel: each rank's slice of `dim` -> whole.

    Backwards partial gradients are summed and sliced (reduce-scatter).
    """
    return lax.all_gather(x, TENSOR, axis=dim, tiled=True)


gather_in.defvjp(
    lambda x, dim: (gather_in(x, dim), None),
    lambda dim, _, g: (lax.psum_scatter(g, TENSOR, scatter_dimension=dim, tiled=True),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scatter_out(x: jax.Array, dim: int) -> jax.Array:
    """Exit, sequence-parallel: partial results are summed, each rank keeps its slice of `dim`.

    Backwards the slices are gathered.
    """
    return lax.psum_scatter(x, TENSOR, scatter_dimension=dim, tiled=True)


scatter_out.defvjp(
    lambda x, dim: (scatter_out(x, dim), None),
    lambda dim, _, g: (lax.all_gather(g, TENSOR, axis=dim, tiled=True),),
)


class TensorRegion(NamedTuple):
    """How activations enter and exit a tensor-parallel region, and how it uses replicated weights.

    On one rank, and where the region is not split, all four are the identity: every rank computes
    the same thing, so nothing is sent and the gradients agree already.
    """

    enter: Callable  # -> [B, T, D] whole
    exit: Callable  # partial [B, T, D] -> summed (sequence-parallel: this rank's [B, T/t, D])
    # a replicated weight outside the region: sequence-parallel ranks use it on different tokens, so
    # its gradient is summed
    replicated: Callable
    within: Callable  # a replicated weight inside it, used by each rank on its own heads: likewise


def tensor_region(split: bool, sequence: bool) -> TensorRegion:
    """The TensorRegion of a part of the layer that is split over tensor, or is not."""
    if not split:
        return TensorRegion(*[lambda x: x] * 4)
    if sequence:
        return TensorRegion(
            lambda x: gather_in(x, 1), lambda x: scatter_out(x, 1), copy_in, copy_in
        )
    return TensorRegion(copy_in, sum_out, lambda x: x, copy_in)
