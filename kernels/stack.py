"""A stack of equal layers, run forward and backward by hand.

The plain reference is jax.grad of a scan over the layers. That keeps or computes again what XLA
likes; here the forward scan keeps each layer's Residuals only, and the reverse scan fetches the
layer's weights again, takes its vjp, and hands its gradients on at once. docs/backward.md explains
it with a drawing.

LETTERS  those of model.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Arrays = dict[str, jax.Array]  # weights, or their gradients, by name

# remat -> names (given above and in kernels/) of what is saved of a layer besides its input
SAVED = {
    "full": (),
    "dots": ("matmul", "attention"),
    "none": ("matmul", "attention", "norm", "rope", "activation"),
}


class Stack(NamedTuple):
    """The layers as a training step runs them."""

    L: int
    fetch: Callable  # (i, x_BTD) -> layer i's weights, gathered
    layer: Callable  # (x_BTD, w, *shared) -> x_BTD
    shared: tuple  # what all layers read: RoPE and segments
    unroll: bool = False  # no loop over the layers, so no copies to and from stacks of residuals

    def at_once(self, layers: int) -> int:
        """How many turns of a loop over so many layers are one turn of the program's."""
        return layers if self.unroll else 1


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["tree", "slots"]
)
@dataclasses.dataclass(frozen=True)
class Residuals:
    """What the backward pass needs of one layer: its input alone (remat "full"), or what is saved.

    The gathered weights (keeping them would undo FSDP) and `shared` are left out. The backward pass
    supplies both, in the places that `slots` names.
    """

    arrays: list
    tree: Any = None  # of the layer's vjp, a function whose leaves are arrays; None for "full"
    slots: tuple = ()  # for each leaf its index in (w, shared), or None: the next of `arrays`


class Tape(NamedTuple):
    """What forward_layers leaves for backward_layers."""

    residuals_L: Residuals  # stacked over the layers; with prefetch, all but the last
    last: Residuals | None = None  # with prefetch, of the last layer
    w_last: Arrays | None = None  # and its weights, gathered: its backward pass comes next


def is_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether this is cuDNN's attention: jax.nn names neither its output nor its log-sum."""
    return primitive.name.startswith("dot_product_attention_fwd")


def layer_forward(
    layer: Callable, x_BTD: jax.Array, w: Arrays, shared: tuple, remat: str
) -> tuple[jax.Array, Residuals]:
    """(layer(x, w, *shared), its Residuals)."""
    if remat == "full":
        return layer(x_BTD, w, *shared), Residuals([x_BTD])
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(*SAVED[remat])
    saving = jax.checkpoint(layer, policy=policies.save_from_both_policies(policy, is_cudnn))
    y_BTD, vjp = jax.vjp(lambda x, w: saving(x, w, *shared), x_BTD, w)
    leaves, tree = jax.tree.flatten(vjp)
    supplied = jax.tree.leaves((w, shared))
    slots = [next((i for i, s in enumerate(supplied) if s is leaf), None) for leaf in leaves]
    arrays = [leaf for leaf, slot in zip(leaves, slots, strict=True) if slot is None]
    return y_BTD, Residuals(arrays, tree, tuple(slots))


def rebuild_vjp(residuals: Residuals, layer: Callable, w: Arrays, shared: tuple) -> Callable:
    """The vjp dy -> (dx, dw) of layer(x, w, *shared), from the weights gathered again."""
    if residuals.tree is None:
        return jax.vjp(lambda x, w: layer(x, w, *shared), residuals.arrays[0], w)[1]
    supplied, arrays = jax.tree.leaves((w, shared)), iter(residuals.arrays)
    leaves = [next(arrays) if slot is None else supplied[slot] for slot in residuals.slots]
    return jax.tree.unflatten(residuals.tree, leaves)


def forward_layers(
    x_BTD: jax.Array, stack: Stack, remat: str, prefetch: bool
) -> tuple[jax.Array, Tape]:
    """All layers -> (x, Tape). With prefetch, the weights of the layer to come are carried.

    The last layer's weights then stay for its backward pass: L gathers forward and L - 1 backward.
    """

    def run(x_BTD, w):
        return layer_forward(stack.layer, x_BTD, w, stack.shared, remat)

    def step(carry, i):
        x_BTD, w = carry
        w, w_next = (w, stack.fetch(i + 1, x_BTD)) if prefetch else (stack.fetch(i, x_BTD), None)
        x_BTD, residuals = run(x_BTD, w)
        return (x_BTD, w_next), residuals

    first = stack.fetch(0, x_BTD) if prefetch else None
    turns = stack.L - prefetch
    (x_BTD, w), residuals_L = lax.scan(
        step, (x_BTD, first), jnp.arange(turns), unroll=stack.at_once(turns)
    )
    if not prefetch:
        return x_BTD, Tape(residuals_L)
    x_BTD, last = run(x_BTD, w)
    return x_BTD, Tape(residuals_L, last, w)


def backward_layers(
    dx_BTD: jax.Array, sums: Arrays, add: Callable, tape: Tape, stack: Stack
) -> tuple[jax.Array, Arrays]:
    """(gradient of the first layer's input, sums with every layer's gradients added).

    Layer by layer from the last: gather its weights (unless they were carried), take its vjp,
    scatter its gradients into the stack at once. add: (sums, i, dw) -> sums.
    """
    prefetch = tape.w_last is not None

    def step(carry, item):
        dx_BTD, w, sums = carry
        residuals, i = item
        if prefetch:
            w_next = stack.fetch(jnp.maximum(i - 1, 0), dx_BTD)
        else:
            w, w_next = stack.fetch(i, dx_BTD), None
        dx_BTD, dw = rebuild_vjp(residuals, stack.layer, w, stack.shared)(dx_BTD)
        return (dx_BTD, w_next, add(sums, i, dw)), None

    carry = dx_BTD, tape.w_last, sums
    if prefetch:
        carry, _ = step(carry, (tape.last, stack.L - 1))
    turns = stack.L - prefetch
    (dx_BTD, _, sums), _ = lax.scan(
        step,
        carry,
        (tape.residuals_L, jnp.arange(turns)),
        reverse=True,
        unroll=stack.at_once(turns),
    )
    return dx_BTD, sums
