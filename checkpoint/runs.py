"""A run's own checkpoints: Orbax writes them, in the background, whole or not at all; they are read slice by slice.

    saver = Saver("out/run", keep=3)
    saver.save(step, state, {"step": step})
    state, meta = saver.restore(state_like)           on any mesh, exactly

Beside the arrays lies a sum of each array's bits, and what is read is held against it. Left out: partial saves, remote
file systems, and Orbax's own restore, which floods stderr where a file is damaged and lets a flipped bit pass.
"""

import contextlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax import lax

# ---------------------------------------------------------------------------------------------------------- from slices


def put(read, shape, spec, dtype):
    """An array of `shape` sharded by `spec`, from read(index) -> numpy; the host holds one slice of it at a time."""
    holders = {}  # a slice -> the devices that hold it
    for device, index in spec.addressable_devices_indices_map(shape).items():
        holders.setdefault(
            tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True)), []
        ).append(device)
    pieces = []
    for bounds, devices in holders.items():
        piece = dense(read(tuple(slice(*b) for b in bounds)), dtype)
        pieces += [jax.device_put(piece, device) for device in devices]
        jax.block_until_ready(pieces[-len(devices) :])
    return jax.make_array_from_single_device_arrays(shape, spec, pieces)


def dense(x, dtype):
    """A copy of x in C order, never a file's own pages; a transposed view 64 columns at a time: twice as fast."""
    if x.ndim != 2 or x.strides[0] > x.strides[1]:
        return np.array(x, dtype, order="C")
    out = np.empty(x.shape, dtype)
    for at in range(0, x.shape[1], 64):
        out[:, at : at + 64] = x[:, at : at + 64]
    return out


# ---------------------------------------------------------------------------------------------------------- checkpoints


def folder_of(run, step):
    return pathlib.Path(run).resolve() / "checkpoints" / str(step)


def steps(run):
    """The steps of a run's whole checkpoints, in order: Orbax gives a checkpoint its name when all of it is there."""
    folder = pathlib.Path(run) / "checkpoints"
    return (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())
        if folder.is_dir()
        else []
    )


def resolve_step(run, step=None):
    """`step`, or the last (None); ValueError where it is not there."""
    there = steps(run)
    if not there:
        raise ValueError(f"{run} has no whole checkpoint: train it first")
    if step is not None and step not in there:
        raise ValueError(
            f"{run} has no checkpoint of step {step}: there are {', '.join(map(str, there))}"
        )
    return there[-1] if step is None else step


def record_of(run, step):
    """What Saver.save wrote beside the arrays of a checkpoint: {"meta": ..., "sums": {array: bits_sum}}."""
    try:
        record = json.loads(
            (folder_of(run, step) / "meta" / "metadata").read_text(encoding="utf-8")
        )
        return {"meta": record["meta"], "sums": dict(record["sums"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"meta: {error}") from None


def open_array(run, step, name):
    """The array `name` ("weights.wq") of a checkpoint: array[index].read().result() is that slice of it."""
    base = f"file://{folder_of(run, step)}/state/"
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**28}})
    return tensorstore.open(spec, context=context, open=True, read=True).result()


def bits_sum(x):
    """Sum modulo 2^32 of the bit patterns of a numpy array: the same on every mesh, and one flipped bit changes it."""
    return int(np.sum(np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}"), dtype=np.uint32))


@jax.jit
def bits_sums(tree):
    """bits_sum of every array of a tree of sharded arrays, uint32, where they are."""
    unsigned = {2: jnp.uint16, 4: jnp.uint32}
    bits = lambda x: lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize])
    return jax.tree.map(lambda x: jnp.sum(bits(x), dtype=jnp.uint32), tree)


def whole(run, step):
    """Whether all of a checkpoint can be read and is what was saved."""
    try:
        for name, want in record_of(run, step)["sums"].items():
            array = open_array(run, step, name)
            slices = range(array.shape[0]) if array.rank > 1 else [...]
            if sum(bits_sum(array[i].read().result()) for i in slices) % 2**32 != want:
                return False
        return True
    except ValueError:
        return False


def damaged(run, step, error):
    """The ValueError for a checkpoint that cannot be read: says which earlier one can."""
    remedy = "no earlier one is whole, start again"
    earlier = next((s for s in reversed(steps(run)) if s < step and whole(run, s)), None)
    if earlier is not None:
        remedy = f"step {earlier} is whole, remove this folder to go on from it"
    why = " ".join(str(error).split())[:200]
    return ValueError(
        f"the checkpoint of step {step} in {folder_of(run, step)} is damaged ({why}): {remedy}"
    )


@contextlib.contextmanager
def reading(run, step, name):
    """Around what reads a checkpoint's files: their ValueErrors become `damaged`."""
    try:
        yield
    except ValueError as error:
        raise damaged(run, step, f"{name}: {error}") from None


def named(tree):
    """[(name, leaf)] of a tree of dicts, named as Orbax names its arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), x) for path, x in leaves]


class Saver:
    """A run's checkpoints, the last `keep` of them kept (0 or None: all)."""

    def __init__(self, run_dir, keep=None):
        import orbax.checkpoint as ocp  # half a second that readers need not wait

        self.run, self.ocp = pathlib.Path(run_dir).resolve(), ocp
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep or None, cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager(self.run / "checkpoints", options=options)

    def save(self, step, state, meta):
        """Start saving a tree of dicts of arrays; returns when they are copied and may be donated. meta: for JSON."""
        args = self.ocp.args
        one_layer_a_chunk = lambda x: self.ocp.SaveArgs(
            shard_axes=(0,) if x.ndim > 2 else ()
        )  # readers take layers
        state_args = args.StandardSave(state, save_args=jax.tree.map(one_layer_a_chunk, state))
        record = {
            "meta": meta,
            "sums": {name: int(n) for name, n in named(jax.device_get(bits_sums(state)))},
        }
        self.manager.save(
            step, args=args.Composite(state=state_args, meta=args.JsonSave(record)), force=True
        )

    def restore(self, state_like, step=None):
        """(state, meta) of a step (None: the last). state_like: ShapeDtypeStructs with shardings, of any mesh."""
        step, wanted, leaves = resolve_step(self.run, step), dict(named(state_like)), []
        with reading(self.run, step, "record"):
            record = record_of(self.run, step)
        other = next(iter(wanted.keys() ^ record["sums"].keys()), None)
        for name, x in wanted.items() if other is None else ():
            with reading(self.run, step, name):
                array = open_array(self.run, step, name)
                if (array.shape, array.dtype.numpy_dtype) != (x.shape, x.dtype):
                    other = f"{name} ({array.dtype.name} {array.shape}, expected {x.dtype.name} {x.shape})"
                    break
                leaves.append(
                    put(
                        lambda at, array=array: array[at].read().result(),
                        x.shape,
                        x.sharding,
                        x.dtype,
                    )
                )
        if other is not None:
            raise ValueError(
                f"{folder_of(self.run, step)} holds another state than this run's, {other} differs: use "
                "the flags it was made with"
            )
        state = jax.tree.unflatten(jax.tree.structure(state_like), leaves)
        for name, n in named(jax.device_get(bits_sums(state))):
            if n != record["sums"][name]:
                raise damaged(self.run, step, f"{name} has another checksum")
        return state, record["meta"]

    def steps(self):
        return steps(self.run)

    def wait(self):
        self.manager.wait_until_finished()

    def close(self):
        self.manager.close()
