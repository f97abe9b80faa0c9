"""A run's own checkpoints: Orbax writes them, in the background, whole or not at all.

    saver = Saver("out/run", keep=3)
    saver.save(step, state, {"step": step})
    state, meta = saver.restore(state_like)           on any mesh, exactly

Beside the arrays lies a sum of each array's bits, and what is read is held against it. They are
read slice by slice. Left out: partial saves, remote file systems, and Orbax's own restore, which
floods stderr where a file is damaged and lets a flipped bit pass.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax import lax

from checkpoint.tensors import put

# --- reading ---


def folder_of(run: str | Path, step: int) -> Path:
    """The folder of a run's checkpoint."""
    return Path(run).resolve() / "checkpoints" / str(step)


def steps(run: str | Path) -> list[int]:
    """The steps of a run's whole checkpoints, in order.

    Orbax gives a checkpoint its name when all of it is there.
    """
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def resolve_step(run: str | Path, step: int | None = None) -> int:
    """`step`, or the last (None); ValueError where it is not there."""
    saved = steps(run)
    if not saved:
        raise ValueError(f"{run} has no whole checkpoint: train it first")
    if step is not None and step not in saved:
        raise ValueError(
            f"{run} has no checkpoint of step {step}: there are {', '.join(map(str, saved))}"
        )
    return saved[-1] if step is None else step


def record_of(run: str | Path, step: int) -> dict[str, Any]:
    """What Saver.save wrote beside the arrays: {"meta": …, "sums": {array: bits_sum}}."""
    try:
        record = json.loads((folder_of(run, step) / "meta" / "metadata").read_bytes())
        return {"meta": record["meta"], "sums": dict(record["sums"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"meta: {error}") from None


def open_array(run: str | Path, step: int, name: str) -> tensorstore.TensorStore:
    """The array `name` ("weights.wq") of a checkpoint: array[index].read().result() is a slice."""
    # not a URL, in which # ? and % would have to be escaped
    base = {"driver": "file", "path": f"{folder_of(run, step)}/state/"}
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**28}})
    return tensorstore.open(spec, context=context, open=True, read=True).result()


def slices_of(array: tensorstore.TensorStore) -> Callable[[Any], np.ndarray]:
    """read(index) -> that slice of a checkpoint's array."""
    return lambda at: array[at].read().result()


def bits_sum(x: np.ndarray) -> int:
    """Sum modulo 2^32 of the bit patterns of an array.

    It is the same on every mesh, and one flipped bit changes it.
    """
    return int(np.sum(np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}"), dtype=np.uint32))


@jax.jit
def bits_sums(tree: Any) -> Any:
    """bits_sum of every array of a tree of sharded arrays, uint32, where they are."""
    unsigned = {2: jnp.uint16, 4: jnp.uint32}

    def one(x):
        bits = lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize])
        return jnp.sum(bits, dtype=jnp.uint32)

    return jax.tree.map(one, tree)


def is_whole(run: str | Path, step: int) -> bool:
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


def damaged(run: str | Path, step: int, error: ValueError | str) -> ValueError:
    """The ValueError for a checkpoint that cannot be read: says which earlier one can."""
    remedy = "no earlier one is whole, start again"
    earlier = next((s for s in reversed(steps(run)) if s < step and is_whole(run, s)), None)
    if earlier is not None:
        remedy = f"step {earlier} is whole, remove this folder to go on from it"
    why = " ".join(str(error).split())[:200]
    return ValueError(
        f"the checkpoint of step {step} in {folder_of(run, step)} is damaged ({why}): {remedy}"
    )


@contextlib.contextmanager
def reading(run: str | Path, step: int, name: str) -> Iterator[None]:
    """Around what reads a checkpoint's files: their ValueErrors become `damaged`."""
    try:
        yield
    except ValueError as error:
        raise damaged(run, step, f"{name}: {error}") from None


def named(tree: Any) -> list[tuple[str, Any]]:
    """(name, leaf) of a tree of dicts, named as Orbax names its arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), x) for path, x in leaves]


# --- writing ---


class LastAndBest:
    """Orbax's policy of which checkpoints stay: the last `keep`, and the best if asked for."""

    def __init__(self, run: Path, keep: int | None, best: bool):
        self.run, self.keep, self.best = run, keep, best
        self.losses: dict[int, float | None] = {}  # step -> held-out loss, of this process's saves

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One bool a checkpoint; they come in the order of their steps."""
        steps = [info.step for info in checkpoints]
        kept = set(steps[-self.keep :] if self.keep else steps)
        if self.best:
            losses = {step: self.loss_of(step) for step in steps}
            measured = {step: x for step, x in losses.items() if x is not None}
            kept |= {min(measured, key=lambda step: measured[step])} if measured else set()
        return [step in kept for step in steps]

    def loss_of(self, step: int) -> float | None:
        """The held-out loss that was measured when a checkpoint was saved."""
        if step not in self.losses:
            with contextlib.suppress(ValueError):
                self.losses[step] = record_of(self.run, step)["meta"].get("eval_loss")
        return self.losses.get(step)


class Saver:
    """A run's checkpoints, the last `keep` of them kept (0 or None: all), and the best."""

    def __init__(self, run_dir, keep: int | None = None, best: bool = False):
        import orbax.checkpoint as ocp  # half a second that readers need not wait

        # A write that fails is said once, by `writing`, not by each of Orbax's threads.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.run, self.ocp = Path(run_dir).resolve(), ocp
        self.policy = LastAndBest(self.run, keep, best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self.policy, cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager(self.run / "checkpoints", options=options)

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start saving a tree of dicts of arrays; returns when they are copied and may be donated.

        meta: for JSON; "eval_loss" in it is what the best checkpoint has least of.
        """
        self.policy.losses[step] = meta.get("eval_loss")
        args = self.ocp.args

        def layer_by_layer(x):  # as readers take them
            return self.ocp.SaveArgs(shard_axes=(0,) if x.ndim > 2 else ())

        state_args = args.StandardSave(state, save_args=jax.tree.map(layer_by_layer, state))
        sums = {name: int(n) for name, n in named(jax.device_get(bits_sums(state)))}
        saved = args.Composite(state=state_args, meta=args.JsonSave({"meta": meta, "sums": sums}))
        with self.writing():
            self.manager.save(step, args=saved, force=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes, or waits for it: its errors become one ValueError of one line."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            full = "No space left on device" in str(error) or "ENOSPC" in str(error)
            why = "no space left on the disk" if full else " ".join(str(error).split())[:200]
            raise ValueError(
                f"a checkpoint could not be written below {self.run} ({why}): make room there, "
                f"then the same command goes on after step {max(self.steps(), default=0)}"
            ) from None

    def confirm(self, step: int) -> None:
        """Wait for a save, and open every array of it; ValueError where one cannot be opened."""
        self.wait()
        with reading(self.run, step, "index"):
            for name in record_of(self.run, step)["sums"]:
                open_array(self.run, step, name)

    def restore(
        self, state_like: dict[str, Any], step: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of a step (None: the last).

        state_like: ShapeDtypeStructs with shardings, of any mesh.
        """
        step, wanted, leaves = resolve_step(self.run, step), dict(named(state_like)), []
        with reading(self.run, step, "record"):
            record = record_of(self.run, step)
        other = next(iter(wanted.keys() ^ record["sums"].keys()), None)
        for name, x in wanted.items() if other is None else ():
            with reading(self.run, step, name):
                array = open_array(self.run, step, name)
                if (array.shape, array.dtype.numpy_dtype) != (x.shape, x.dtype):
                    other = (
                        f"{name} ({array.dtype.name} {array.shape}, expected {x.dtype.name} "
                        f"{x.shape})"
                    )
                    break
                leaves.append(put(slices_of(array), x.shape, x.sharding, x.dtype))
        if other is not None:
            raise ValueError(
                f"{folder_of(self.run, step)} holds another state than this run's, {other} "
                "differs: use the flags it was made with"
            )
        state = jax.tree.unflatten(jax.tree.structure(state_like), leaves)
        for name, n in named(jax.device_get(bits_sums(state))):
            if n != record["sums"][name]:
                raise damaged(self.run, step, f"{name} has another checksum")
        return state, record["meta"]

    def steps(self) -> list[int]:
        """The steps that are saved."""
        return steps(self.run)

    def wait(self) -> None:
        """Return when what was saved is on disk."""
        with self.writing():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and let go of the background threads."""
        with self.writing():
            self.manager.close()
