"""A training step by torch, for what holds ours against it; nothing to run.

Forward, cross-entropy over all tokens, backward, clip to norm 1, AdamW without decay.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

BETAS, EPS, CLIP = (0.9, 0.95), 1e-8, 1.0


def stepper(net: Any, token_BX: np.ndarray, lr: float, fused: bool = False) -> Callable[[], float]:
    """A function that takes one step on the rows and returns its loss. net: of transformers."""
    opt = torch.optim.AdamW(
        net.parameters(), lr=lr, betas=BETAS, eps=EPS, weight_decay=0.0, fused=fused
    )
    ids = torch.from_numpy(token_BX.astype(np.int64))

    def step():
        opt.zero_grad(set_to_none=True)
        logits = net(ids[:, :-1], use_cache=False).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        opt.step()
        return float(loss.detach())

    return step
