"""A training step on one GPU against transformers' LlamaForCausalLM with sdpa on the same card: tokens/s, MFU, peak memory. bench/gpu.sh runs it.

    python bench/gpu.py                    LLaMA 1.3B and 7B, block 2048, bfloat16 compute, whatever plan.py says fits
    python bench/gpu.py --toy              a toy on the CPU, to try the script

First both take three steps of a small model from the same weights and rows on the card: the losses must agree to 2 % (bfloat16), or nothing is timed. Then every case runs in a process of
its own, since a peak is of a process; ours is train.py's step (adamw-scaled, float32 weights), theirs forward, backward, clip and fused AdamW: with float32 weights under autocast, as
ours, and all in bfloat16. Two steps warm up; --steps are timed together. MFU by plan.py's formula for all. A case that does not fit or fails is a row that says so.
Left out: data loading, several GPUs.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

LR = 1e-4
ROOM = 0.92  # of the card's memory may be planned: the rest is XLA's own and fragmentation


def config_of(name):
    import model

    return {
        "toy": lambda: model.llama(512, 64, 2, 2, 176, 64, 1e-5),
        "check": lambda: model.llama(
            512, 256, 2, 2, 704, 256, 1e-5
        ),  # heads of 128, which every attention kernel takes
        "1.3b": lambda: model.llama(32000, 2048, 24, 16, 5504, 2048, 1e-5),
        "7b": lambda: model.preset("llama-7b"),
    }[name]()


# ---------------------------------------------------------------------------------------------------- the two programs


def ours(case, tokens, weights=None):
    """(a function that takes n steps and returns their losses, how much it holds at its peak in bytes, what ran). case: config name, remat, grads, moment, attention, optimizer."""
    import jax
    import jax.numpy as jnp

    import model
    import sharding
    import train
    from training import batches
    from training.start import new_state, state_like, step_options

    config, device = config_of(case["config"]), jax.devices()[0]
    mesh, layout = sharding.make_mesh(1, 1, [device]), model.make_layout(config, 1, 1)
    names = dict(
        dtype="bfloat16",
        grad_dtype=case["grads"],
        block=tokens.shape[1] - 1,
        attention=case["attention"],
        remat=case["remat"],
        prefetch=None,
        pack="stream",
    )
    compute = step_options(argparse.Namespace(**names), config, device.platform, 1)
    step = train.make_step(
        config,
        mesh,
        layout,
        compute,
        train.Optimizer(case["optimizer"], 0.9, 0.95, 0.0, 1.0),
        lambda count: jnp.float32(LR),
        "token",
    )
    like, spec = (
        state_like(config, mesh, layout, jnp.dtype(case["moment"])),
        sharding.shardings(layout.stacked(config), mesh),
    )
    weights = (
        model.initialise(config, mesh, layout, 0)
        if weights is None
        else {n: jax.device_put(x, spec[n]) for n, x in weights.items()}
    )
    held = {"state": new_state(weights, like)}
    del weights
    rows = {"tokens": tokens, "loss_mask": np.ones(tokens.shape, np.int8)}
    batch = batches.device_batch(lambda i: rows, np.arange(len(tokens)), 1, mesh)

    def run(n):
        losses = []
        for _ in range(n):
            held["state"], metrics = step(held["state"], batch)
            losses.append(metrics["loss"])
        return [float(x) for x in losses]

    return (
        run,
        lambda: (device.memory_stats() or {}).get("peak_bytes_in_use"),
        f"{device.device_kind}, jax {jax.__version__}, attention {compute.attention}",
    )


def theirs(case, tokens, weights=None):
    """The same of transformers. case: config name, remat (full: gradient checkpointing), weights (float32 under autocast, or bfloat16), compile."""
    import torch
    import transformers

    import model
    from checkpoint import huggingface
    from checkpoint.names import file_names

    config, device = config_of(case["config"]), "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        net = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **huggingface.write_config(config), attn_implementation="sdpa", use_cache=False
            )
        ).to(getattr(torch, case["weights"]))
    if weights is not None:
        state = {}
        for name, row in model.weight_table(config).items():
            for i in range(config.L if row.layered else 1):
                x = np.asarray(weights[name][i] if row.layered else weights[name])
                x = x[: config.V] if row.dims[0] == "V" else x
                state[file_names(config)[name].hf.format(i)] = torch.from_numpy(
                    np.array(x.T if row.dims[0] != "V" and x.ndim == 2 else x)
                )
        net.load_state_dict(state, strict=True)
    if case["remat"] == "full":
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    net.train()
    opt = torch.optim.AdamW(
        net.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True
    )
    forward = torch.compile(net) if case.get("compile") else net
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)

    def run(n):
        losses = []
        for _ in range(n):
            opt.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=case["weights"] == "float32"):
                logits = forward(ids[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten()
            )
            del logits
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            losses.append(loss.detach())
        return [float(x) for x in losses]  # waits for the card

    peak = torch.cuda.max_memory_allocated if device == "cuda" else lambda: None
    return (
        run,
        peak,
        f"{torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}, torch {torch.__version__}, transformers {transformers.__version__}, sdpa",
    )


def one(case):
    """Run a case in this process -> its figures."""
    config = config_of(case["config"])
    tokens = (
        np.random.default_rng(0)
        .integers(0, config.V, (case["batch"], case["block"] + 1))
        .astype(np.int32)
    )
    if case["program"] == "check":
        import model
        import sharding

        weights = {
            n: np.asarray(x)
            for n, x in model.initialise(
                config, sharding.make_mesh(1, 1), model.make_layout(config, 1, 1), 0
            ).items()
        }
        steps = {f.__name__: f(case, tokens, weights)[0](3) for f in (ours, theirs)}
        worst = max(abs(a / b - 1) for a, b in zip(*steps.values(), strict=True))
        return steps | {"worst": worst}
    run, peak, what = (ours if case["program"] == "ours" else theirs)(case, tokens)
    start = time.perf_counter()
    first = run(2)
    ready = time.perf_counter() - start
    start = time.perf_counter()
    losses = run(case["steps"])
    seconds = (time.perf_counter() - start) / case["steps"]
    assert np.all(np.isfinite(losses)), losses
    return {
        "seconds": seconds,
        "ready": ready,
        "peak": peak(),
        "what": what,
        "first": first[0],
        "last": losses[-1],
    }


# --------------------------------------------------------------------------------------------------------------- driver


def planned(config, batch, block, remat, grads, moment, platform):
    """plan.py's bytes for a step of ours on one device."""
    import jax.numpy as jnp

    import model
    from training import plan

    compute = model.StepOptions(
        jnp.dtype("bfloat16"),
        jnp.dtype(grads),
        remat=remat,
        mlp_rows=1 if remat == "full" and platform == "gpu" else None,
        join=platform != "gpu",
    )
    return plan.memory(
        config,
        model.make_layout(config, 1, 1),
        compute,
        batch=batch,
        T=block,
        moment_dtype=jnp.dtype(moment),
    )["total"]


def fitting(config, name, remat, block, room, platform):
    """The first of (rows, gradients' dtype, first moment's) whose plan fits into `room` bytes: float32 before bfloat16, more rows before fewer; None where nothing does."""
    for grads, moment in (("float32", "float32"), ("bfloat16", "bfloat16")):
        for batch in (8, 4, 2) if name != "toy" else (4,):
            total = planned(config, batch, block, remat, grads, moment, platform)
            if total < room:
                return dict(batch=batch, grads=grads, moment=moment, planned=total)
    return None


def cases(names, room, platform, steps, attention, compiled):
    """Every case in the order of interest, and notes on what does not fit."""
    found, notes = [], []
    for name in names:
        config = config_of(name)
        block = min(2048, config.P)
        common = dict(
            config=name, block=block, steps=steps, optimizer="adamw-scaled", attention="auto"
        )
        full = fitting(config, name, "full", block, room, platform)
        if not full:
            least = planned(config, 2, block, "full", "bfloat16", "bfloat16", platform)
            notes.append(
                f"{name}: ours needs {least / 2**30:.1f} GiB at least (2 rows, bfloat16 gradients and first moment), {room / 2**30:.1f} are there: left out"
            )
            continue
        found.append(common | full | dict(program="ours", remat="full"))
        rows = full["batch"]
        theirs_too = dict(program="transformers", batch=rows, compile=compiled)
        found.append(common | theirs_too | dict(remat="full", weights="float32"))
        found.append(common | theirs_too | dict(remat="full", weights="bfloat16"))
        if name != "7b":
            dots = fitting(config, name, "dots", block, room, platform)
            if dots:
                found.append(common | dots | dict(program="ours", remat="dots"))
            found.append(common | theirs_too | dict(remat="none", weights="float32"))
            found += [
                common | full | dict(program="ours", remat="full", attention=a) for a in attention
            ]
    first = lambda c: (
        c["remat"] == "full" and c["attention"] == "auto" and c.get("weights") != "bfloat16"
    )
    return sorted(
        found, key=lambda c: not first(c)
    ), notes  # every model once before the variants: time may run out


def child(case, seconds):
    """A case in a process of its own -> (figures or None, why not)."""
    env = os.environ | {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"
    }  # JAX takes three quarters otherwise
    if case["program"] == "check":
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # two programs share the card
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps(case)],
            env=env,
            capture_output=True,
            text=True,
            timeout=max(seconds, 1),
        )
    except subprocess.TimeoutExpired:
        return None, f"not done in {seconds:.0f} s"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), None
    error = done.stderr.strip() or f"exit status {done.returncode}"
    memory = next(
        (word for word in ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory") if word in error),
        None,
    )
    return None, "out of memory" if memory else error.splitlines()[-1][:150]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument(
        "--models",
        nargs="+",
        default=["1.3b", "7b"],
        choices=["1.3b", "7b"],
        metavar="NAME",
        help="[default 1.3b 7b]",
    )
    p.add_argument(
        "--steps", type=int, default=12, metavar="N", help="timed steps [default %(default)s]"
    )
    p.add_argument(
        "--minutes",
        type=float,
        default=9.5,
        metavar="M",
        help="what has not begun by then is left out and named [default %(default)s]",
    )
    p.add_argument(
        "--attention",
        nargs="*",
        default=["blockwise"],
        metavar="KERNEL",
        help="other kernels to try with the smaller model [default %(default)s]",
    )
    p.add_argument("--compile", action="store_true", help="torch.compile for theirs (minutes more)")
    p.add_argument("--toy", action="store_true", help="a toy on the CPU")
    p.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.case:
        print(json.dumps(one(args.case)))
        return 0
    started = time.monotonic()
    left = lambda: args.minutes * 60 - (time.monotonic() - started)
    if args.toy:
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }  # compiling is most of it
    probe = "import jax, json, torch, transformers; d = jax.devices()[0]; print(json.dumps([d.platform, d.device_kind, torch.cuda.is_available(), (d.memory_stats() or {}).get('bytes_limit')]))"
    seen = subprocess.run(
        [sys.executable, "-c", probe],
        env=os.environ
        | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "1.0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
    )
    if seen.returncode:
        print(
            f"gpu.py: {seen.stderr.strip().splitlines()[-1]}: pip install -r requirements-compare.txt",
            file=sys.stderr,
        )
        return 2
    platform, kind, torch_too, limit = json.loads(seen.stdout.splitlines()[-1])
    if not args.toy and (platform != "gpu" or not torch_too):
        blind = "JAX" if platform != "gpu" else "torch"
        print(
            f'gpu.py: {blind} sees no NVIDIA GPU: pip install -U "jax[cuda12]" torch (their CUDA builds), or try the script with --toy',
            file=sys.stderr,
        )
        return 2
    from training import plan

    peak = plan.peak_flops(kind)
    room = limit * ROOM if limit else 4 * 2**30
    check = dict(
        program="check",
        config="check",
        batch=4,
        block=256,
        remat="full",
        grads="float32",
        moment="float32",
        attention="auto",
        optimizer="adamw",
        weights="float32",
    )
    figures, why = child(check, left())
    if figures is None or not figures["worst"] < 0.02:
        print(
            f"gpu.py: the two programs do not take the same step ({why or figures}): nothing is timed",
            file=sys.stderr,
        )
        return 1
    print(
        f"{kind}; peak {f'{peak / 1e12:.0f} TFLOP/s' if peak else 'not known'}; the same step from the same weights: losses differ by {figures['worst']:.2e}"
    )
    found, notes = cases(
        ["toy"] if args.toy else args.models,
        room,
        platform,
        args.steps if not args.toy else 3,
        args.attention,
        args.compile,
    )
    print(
        "\n| model | program | rows x block | tokens/s | MFU | peak GiB | planned GiB | ready s |\n"
        + "|---" * 8
        + "|",
        flush=True,
    )
    speed, skipped = {}, []
    for case in found:
        config = config_of(case["config"])
        program = (
            f"ours, remat {case['remat']}, gradients {case['grads']}, first moment {case['moment']}"
            if case["program"] == "ours"
            else (
                f"transformers, {'float32 weights, autocast' if case['weights'] == 'float32' else 'all bfloat16'}, checkpointing {'on' if case['remat'] == 'full' else 'off'}"
                + ", compiled" * case["compile"]
            )
        )
        if case["attention"] != "auto":
            program += f", attention {case['attention']}"
        if left() < 30:
            skipped.append(f"{case['config']}: {program}")
            continue
        figures, why = child(case, left())
        shape = f"{case['batch']} x {case['block']}"
        if figures is None:
            print(f"| {case['config']} | {program} | {shape} | {why} | | | | |", flush=True)
            continue
        tokens = case["batch"] * case["block"]
        mfu = (
            f"{plan.model_flops(config, tokens, case['block']) / figures['seconds'] / peak:.1%}"
            if peak
            else "-"
        )
        gib = lambda n: f"{n / 2**30:.1f}" if n else "-"
        print(
            f"| {case['config']} | {program} | {shape} | {tokens / figures['seconds']:,.0f} | {mfu} | {gib(figures['peak'])} | {gib(case.get('planned'))} | {figures['ready']:.0f} |",
            flush=True,
        )
        notes.append(
            f"{case['config']}, {program}: {figures['what']}; loss {figures['first']:.3f} -> {figures['last']:.3f} on one batch"
        )
        mine = case["program"] == "ours"
        best = speed.setdefault(case["config"], {})
        best[mine] = max(best.get(mine, 0), tokens / figures["seconds"])
    print("\n" + "\n".join(f"* {line}" for line in notes))
    if args.toy:
        print("* a toy's figures mean nothing: the script runs through")
    for name, best in speed.items():
        if len(best) == 2 and not args.toy:
            print(f"* {name}: our best is {best[True] / best[False]:.2f} times transformers' best")
    for line in skipped:
        print(f"* left out, {args.minutes:g} minutes were up: {line}")
    print(
        f"MFU: {plan.FLOPS_FORMULA}, over the peak of dense bfloat16; {(time.monotonic() - started) / 60:.1f} minutes in all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
