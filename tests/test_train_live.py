"""Three training steps of every family against transformers and torch.

python -m pytest tests/test_train_live.py --live
"""

import jax
import jax.numpy as jnp
import make_references
import numpy as np
import pytest
from test_model import config_of, from_hugging_face

import model
import sharding
import train
from training import batches
from training.start import new_state, state_like

STEPS, LR = 3, 1e-3


def our_steps(fields, arrays, tokens, mesh_shape):
    """(losses, weights as NumPy arrays) after STEPS steps of train.py's AdamW."""
    config = config_of(fields)
    mesh, layout = sharding.make_mesh(*mesh_shape), model.make_layout(config, *mesh_shape)
    opt = train.Optimizer("adamw", 0.9, 0.95, 0.0, 1.0)
    options = model.StepOptions(attention="blockwise", remat="dots")
    step = train.make_step(
        config, mesh, layout, options, opt, lambda count: jnp.float32(LR), "token"
    )
    spec = sharding.shardings(layout.stacked(config), mesh)
    weights = from_hugging_face(arrays, config)
    weights = {name: jax.device_put(jnp.asarray(w), spec[name]) for name, w in weights.items()}
    state = new_state(weights, state_like(config, mesh, layout, jnp.float32))
    rows = {"tokens": tokens, "loss_mask": np.ones(tokens.shape, np.int8)}

    def read(indices):
        return {name: x[indices] for name, x in rows.items()}

    losses = []
    for _ in range(STEPS):
        batch = batches.device_batch(read, np.arange(len(tokens)), 1, mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, {name: np.asarray(w) for name, w in state["weights"].items()}


def torch_steps(fields, arrays, tokens):
    """(losses, weights by Hugging Face's names) after the same steps of torch's AdamW."""
    import torch

    from bench import torch_twin

    net = make_references.hugging_face(fields)  # in eval mode: GPT-2's dropout is off
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.copy_(torch.from_numpy(np.array(arrays[name])))
    step = torch_twin.stepper(net, tokens, LR)
    losses = [step() for _ in range(STEPS)]
    return losses, {n: w.detach().numpy() for n, w in net.named_parameters()}


@pytest.mark.parametrize("mesh_shape", [(1, 1), (2, 2)], ids=["1x1", "2x2"])
@pytest.mark.parametrize("case", make_references.CASES)
def test_trained_steps_equal_torchs(case, mesh_shape, live):
    fields = make_references.CASES[case]
    arrays, tokens, _ = make_references.make(fields, seed=300 + len(case))
    losses, weights = our_steps(fields, arrays, tokens, mesh_shape)
    their_losses, their_weights = torch_steps(fields, arrays, tokens)
    np.testing.assert_allclose(losses, their_losses, rtol=2e-5)
    assert losses[-1] < losses[0]
    moved = 0.0
    for name, want in from_hugging_face(arrays | their_weights, config_of(fields)).items():
        # Adam's first updates are near lr * sign(gradient), so a weight whose gradient is rounding
        # alone (the bias of keys has none) may move either way: those are not compared.
        steady = np.abs(weights[name] - want) < 2e-5
        assert steady.mean() > 0.98 or name in ("bk",), (name, steady.mean())
        before = from_hugging_face(arrays, config_of(fields))[name]
        moved = max(moved, float(np.abs(weights[name] - before).max()))
    assert moved > 2 * LR  # the steps did something
