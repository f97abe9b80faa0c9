"""transformers on one GPU, for bench/gpu.py: its LLaMA with sdpa, a training step, generate.

bench/gpu_cases.py runs it. Left out: torch.compile, several GPUs.
"""

import time

import numpy as np
from gpu_cases import LR, config_of, say


def their_model(config, dtype: str, weights=None):
    """(transformers' LlamaForCausalLM with sdpa on the card, the device's name)."""
    import torch
    import transformers

    import model
    from checkpoint import huggingface
    from checkpoint.names import file_names

    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = huggingface.write_config(config)
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, dtype))
        net = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**record, attn_implementation="sdpa", use_cache=False)
        )
        torch.set_default_dtype(torch.float32)
    if weights is None:
        return net, device
    state = {}
    for name, row in model.weight_table(config).items():
        for i in range(config.L if row.layered else 1):
            x = np.asarray(weights[name][i] if row.layered else weights[name])
            x = x[: config.V] if row.dims[0] == "V" else x.T
            state[file_names(config)[name].hf.format(i)] = torch.from_numpy(np.array(x))
    net.load_state_dict(state, strict=True)
    return net, device


def their_step(case: dict, tokens, weights=None):
    """What gpu_cases.our_step gives, of transformers: forward, backward, clip, fused AdamW.

    case["weights"]: float32, under autocast, or bfloat16 with all else.
    """
    import torch
    import transformers

    net, device = their_model(config_of(case["config"]), case["weights"], weights)
    if case["remat"] == "full":
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    net.train()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True
    )
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)

    def run(n):
        losses = []
        for _ in range(n):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=case["weights"] == "float32"):
                logits = net(ids[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten()
            )
            del logits
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
        return [float(x) for x in losses]  # waits for the card

    peak = torch.cuda.max_memory_allocated if device == "cuda" else lambda: None
    return run, peak, f"torch {torch.__version__}, transformers {transformers.__version__}"


def decode_case(case: dict):
    """The same prompts through transformers' generate, greedy, bfloat16."""
    import torch

    config = config_of(case["config"])
    net, device = their_model(config, "bfloat16")
    net.eval()
    random = np.random.default_rng(0)
    how = dict(do_sample=False, use_cache=True, pad_token_id=0)
    how |= dict(max_new_tokens=case["new"], min_new_tokens=case["new"])
    few = dict(max_new_tokens=8, min_new_tokens=8)
    for batch in case["batches"]:
        prompts = random.integers(3, config.V, (batch, case["prompt"]))
        ids = torch.from_numpy(prompts).to(device)
        with torch.inference_mode():
            net.generate(ids, attention_mask=torch.ones_like(ids), **how | few)
            start = time.perf_counter()
            made = net.generate(ids, attention_mask=torch.ones_like(ids), **how).cpu()
            seconds = time.perf_counter() - start
        say(batch=batch, rate=batch * (made.shape[1] - case["prompt"]) / seconds)
