"""Decoding held to `plain` and the full forward: every mesh, ragged prompts, refilled slots, shared
beginnings, samples by key.

python -m pytest tests/decoding/test_decoder.py
--live also against transformers' generate; --data DIR also stories260K's known text
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import make_references
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from checkpoint import paths
from checkpoint.load import load_weights
from decoding import cache, decoder, memory, reference
from decoding.records import Sampling
from decoding.reference import completion
from text import tokenizer

LLAMA = model.llama(300, 24, 1, 6, 36, 96, 1e-5)

CONFIGS = {
    "mha": LLAMA,
    "gqa": dataclasses.replace(LLAMA, L=2, N=8, K=2, H=4),
    "gpt2": model.gpt2(300, 24, 1, 6, P=96),
}

EVERY_FLAG = dict(qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=True, rope_scaling=(4.0,))

CONFIGS["flags"] = dataclasses.replace(CONFIGS["gqa"], **EVERY_FLAG)

random = np.random.RandomState(0)

PROMPTS = [random.randint(0, 300, size).tolist() for size in (3, 1, 20, 7, 80, 5, 5, 13, 40)]

STOP = 7


def made(name, data=1, tensor=1):
    return make(name, data, tensor)


@functools.cache
def make(name, data, tensor):
    """(config, mesh, layout, stacked weights, weights for decoding, Decoder); matrices three times
    as large as at initialisation, so that attention is not flat.
    """
    config = CONFIGS[name]
    mesh, layout = (
        sharding.make_mesh(data, tensor),
        model.make_layout(config, data, tensor, fsdp=False),
    )
    weights = {
        n: w * (3 if w.ndim == 3 else 1)
        for n, w in model.initialise(config, mesh, layout, 0).items()
    }
    if name == "flags":  # biases and norms that count
        noise = np.random.RandomState(3)
        for n in model.weight_table(config):
            if n.startswith("b") or n in ("q_norm", "k_norm"):
                weights[n] = weights[n] + noise.randn(*weights[n].shape).astype(np.float32) / 3
    apart, specs = cache.for_decoding(dict(weights), config, mesh, layout)
    return config, mesh, layout, weights, apart, decoder.Decoder(config, mesh, layout, specs)


@functools.cache
def plain(name, prompts, max_new, stop=(STOP,)):
    """The slow reference's greedy continuations."""
    config, mesh, layout, weights, *_ = made(name)
    logits = model.make_logits(config, mesh, layout)
    return reference.plain(
        lambda token: logits(weights, token),
        [list(p) for p in prompts],
        length=config.P,
        rows=9,
        stop=set(stop),
        max_new=max_new,
    )


def frozen(prompts):
    return tuple(map(tuple, prompts))


def run(name, prompts, data=1, tensor=1, **how):
    """Outputs in the order of the prompts and samples."""
    *_, weights, programs = made(name, data, tensor)
    other = {k: how.pop(k) for k in ("tok", "batch", "names", "watch") if k in how}
    settings = Sampling(**{"max_new": 40, "stop_ids": frozenset({STOP})} | how)
    return sorted(programs.generate(weights, prompts, settings, **other))


# --- cached forward ---


@pytest.mark.parametrize(
    "name, data, tensor", [("gqa", 2, 2), ("gqa", 1, 4), ("gpt2", 1, 3), ("flags", 1, 4)]
)
def test_one_token_at_a_time_over_the_cache_gives_the_logits_of_the_full_forward(
    name, data, tensor
):
    """To 1e-4 of logits up to 4: float32, summed in another order. gqa on 1x4 has fewer kv heads
    than ranks; the rows are at different positions, as slots are.
    """
    config, mesh, layout, weights, apart, programs = made(name, data, tensor)
    token = np.random.RandomState(1).randint(0, 300, (2, 30)).astype(np.int32)
    full = np.asarray(model.make_logits(config, mesh, layout)(weights, token))

    def local(weights, token_B, position_B, kv):
        x, kv = cache.decode_step(weights, token_B, position_B, kv, config, layout, jnp.float32)
        return model.logits(
            x, {n: w for n, w in weights.items() if n != "layers"}, config, layout, jnp.float32
        ), kv

    rows = Spec("data")
    step = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(programs.specs, rows, rows, programs.cache_spec),
            out_specs=(rows, programs.cache_spec),
            check_vma=False,
        )
    )
    kv = [
        (np.zeros((2, cache.cache_heads(config, layout), 32, config.H), np.float32),) * 2
    ] * config.L
    for t in range(25):
        at = np.array(
            [t, max(t - 5, 0)],
            np.int32,
            # the second row stays at its first token for five steps: it is written again, and
            # nothing
            # else
        )
        logits, kv = step(apart, token[[0, 1], at], at, kv)
        np.testing.assert_allclose(logits[:, 0], full[[0, 1], at], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name, data, tensor", [("gqa", 2, 2), ("gpt2", 1, 1)])
def test_rows_behind_a_prefix_see_it_and_nothing_of_their_neighbours(name, data, tensor):
    """A prefix of 70 of 512 places and two trees a row (a trunk with two branches; one text)
    against the full forward of each text by itself.
    """
    config, mesh, layout, weights, *_ = made(name, data, tensor)

    def draw(size):
        return np.random.RandomState(size).randint(0, 300, size).tolist()

    prefix, trunk, branches, other = draw(70), draw(4), [draw(5), draw(3)], draw(6)
    texts = [prefix + trunk + branches[0], prefix + trunk + branches[1], prefix + other]
    ids = trunk + branches[0] + branches[1] + other
    tree, branch = [1] * 12 + [2] * 6, [0] * 4 + [1] * 5 + [2] * 3 + [1] * 6
    position = [70 + p for p in [0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 5, 6, 0, 1, 2, 3, 4, 5]]
    prefixes = cache.PrefixCache(config, mesh, layout, layout.stacked(config))
    arrays, extend = prefixes.empty(512), prefixes.extend
    arrays = extend(weights, np.array(prefix[:40] + [0] * 10, np.int32), arrays, np.int32(0))
    arrays = extend(weights, np.array(prefix[40:] + [0] * 20, np.int32), arrays, np.int32(40))

    def local(weights, row, arrays):
        x, _ = cache.prefill(
            weights,
            cache.Rows(row[:, 0], row[:, 1], cache.visible(row[:, 2], row[:, 3])),
            arrays,
            jnp.int32(70),
            config,
            layout,
            jnp.float32,
        )
        return model.logits(x, model.split_layers(weights, config)[1], config, layout, jnp.float32)

    spec = (Spec(None, *cache.cache_spec(layout, False)),) * 2
    row = np.tile(np.array([ids, position, tree, branch], np.int32), (data, 1, 1))
    got = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(layout.stacked(config), Spec("data"), spec),
            out_specs=Spec("data"),
            check_vma=False,
        )
    )(weights, row, arrays)
    full = model.make_logits(config, mesh, layout)
    for text, places in zip(
        texts, [range(9), [0, 1, 2, 3, 9, 10, 11], range(12, 18)], strict=False
    ):
        token = np.zeros((data, 80), np.int32)
        token[:, : len(text)] = text
        np.testing.assert_allclose(
            got[-1, np.array(places)], full(weights, token)[0, 70 : len(text)], atol=1e-4, rtol=0
        )


def test_the_weights_for_decoding_are_the_weights():
    config, _, layout, weights, apart, _ = made("gqa", 1, 4)
    assert [set(layer) for layer in apart["layers"]] == [
        {"attn_norm", "wqkv", "wo", "mlp_norm", "w13", "w2"}
    ] * 2
    np.testing.assert_array_equal(apart["layers"][1]["wo"], weights["wo"][1])
    np.testing.assert_array_equal(apart["embed"], weights["embed"])


# --- greedy ---


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch", [1, 8])
def test_greedy_ids_equal_the_full_forwards_at_every_batch_size(name, batch):
    """Nine ragged prompts, so that slots are refilled; token for token, since the best two logits
    are nowhere closer than rounding (asserted).
    """
    outputs = run(name, PROMPTS, batch=batch)
    assert [o.ids for o in outputs] == plain(name, frozen(PROMPTS), 40)
    assert min(o.margin for o in outputs) > 1e-5
    assert {o.reason for o in outputs} >= {"length", "context"} and [
        o.prompt for o in outputs
    ] == list(range(9))


@pytest.mark.parametrize(
    "name, data, tensor", [("mha", 2, 2), ("gqa", 1, 4), ("gpt2", 4, 1), ("flags", 2, 2)]
)
def test_greedy_ids_are_the_same_on_every_mesh(name, data, tensor):
    assert [o.ids for o in run(name, PROMPTS, data, tensor, batch=4)] == plain(
        name, frozen(PROMPTS), 40
    )


def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing():
    prompts = [PROMPTS[4][:60] + p for p in PROMPTS[:4]]
    programs = made("gqa")[-1]
    lengths = []
    read = programs.read
    programs.read = lambda weights, token, *rest: (
        lengths.append(token["ids"].astype(bool).sum()) or read(weights, token, *rest)
    )
    try:
        assert [o.ids for o in run("gqa", prompts, max_new=9)] == plain("gqa", frozen(prompts), 9)
    finally:
        programs.read = read
    assert sum(lengths) <= sum(map(len, PROMPTS[:4]))
    assert [o.ids for o in run("gqa", prompts[:1], max_new=9)] == plain(
        "gqa", frozen(prompts[:1]), 9
    )  # a prompt alone is a prefix, most of which is there already


def test_a_kept_prefix_is_of_these_weights_only():
    *_, apart, programs = made("mha")
    first = run("mha", [PROMPTS[4]], max_new=9)
    other = apart | {"embed": apart["embed"][::-1] * 1.0}
    changed = list(programs.generate(other, [PROMPTS[4]], Sampling(9)))
    programs.prefixes.kept = None
    assert (
        [o.ids for o in programs.generate(other, [PROMPTS[4]], Sampling(9))]
        == [o.ids for o in changed]
        != [o.ids for o in first]
    )


def test_slots_that_are_done_take_waiting_prompts():
    """Two slots, a long answer and nine short ones: the steps made are about the long answer's, not
    the sum over batches.
    """
    *_, programs = made("mha")
    room = {0: 60} | {i: 6 for i in range(1, 10)}
    made_steps, steps = [], programs.steps

    def counted(*args, **how):
        cache, out, *rest = steps(*args, **how)
        made_steps.append(int((np.asarray(out) >= 0).sum(axis=1).max()))
        return cache, out, *rest

    programs.steps = counted
    try:
        # long prompts have little room: P 96
        outputs = run(
            "mha",
            [PROMPTS[0]] + [(PROMPTS[4] * 2)[: 96 - room[i] - i % 2] for i in range(1, 10)],
            batch=2,
            max_new=60,
            stop_ids=frozenset(),
        )
    finally:
        programs.steps = steps
    assert [len(o.ids) for o in outputs] == [60, 7, 6, 7, 6, 7, 6, 7, 6, 7]
    assert 60 <= sum(made_steps) <= 75, made_steps


# --- stopping ---


def test_stop_ids_lengths_and_the_end_of_the_context_end_a_row():
    whole = run("mha", PROMPTS, stop_ids=frozenset(), max_new=30)
    assert [o.reason for o in whole] == [
        "context" if len(p) + 30 > 96 else "length" for p in PROMPTS
    ]
    assert [len(o.ids) for o in whole] == [min(30, 96 - len(p)) for p in PROMPTS]
    stop = whole[0].ids[9]
    cut = run("mha", PROMPTS, stop_ids=frozenset({stop, 299}), max_new=30)
    for a, b in zip(whole, cut, strict=False):
        end = a.ids.index(stop) if stop in a.ids else 299
        assert b.ids == a.ids[: min(end, a.ids.index(299) if 299 in a.ids else 299)]
        assert (b.reason == "stop") == (b.ids != a.ids)
    assert cut[0].reason == "stop"


class Letters:
    """A tokenizer of which id i is the letter i modulo 26, a space before every fifth; id 0 a third
    of a euro sign.
    """

    def decode_bytes(self, ids):
        return b"".join(
            b"\xe2" if i == 0 else (b" " if i % 5 == 0 else b"") + bytes([97 + i % 26]) for i in ids
        )


def test_text_is_cut_before_the_first_stop_string_wherever_tokens_end():
    tok = Letters()
    assert completion(tok, [3], [5, 6, 10]) == (" fg k", False)
    assert completion(tok, [3], [5, 6, 10, 11], (" k", "g k", "zz")) == (" f", True)
    assert completion(tok, [3], [1, 0]) == ("b\ufffd", False)  # a character cut in half
    whole = run("gpt2", PROMPTS, tok=tok, stop_ids=frozenset())
    for stops in (("x",), (whole[0].text[5:8], "qq")):
        for a, b in zip(
            whole,
            run("gpt2", PROMPTS, tok=tok, stop_ids=frozenset(), stop_strings=stops, batch=4),
            strict=False,
        ):
            ends = [at for s in stops if (at := a.text.find(s)) >= 0]
            assert b.text == (a.text[: min(ends)] if ends else a.text)
            assert b.reason == ("stop" if ends else a.reason)
            seen = [
                completion(tok, PROMPTS[a.prompt], a.ids[:k], stops)[1]
                for k in range(len(a.ids) + 1)
            ]
            assert (
                b.ids == a.ids[: seen.index(True)] if ends else b.ids == a.ids
            )  # nothing of what was made before the host looked


def test_a_watcher_sees_each_answer_grow():
    seen = {}

    def watch(prompt, sample, ids):
        assert ids[: len(seen.get(prompt, []))] == seen.get(prompt, [])
        seen[prompt] = list(ids)

    outputs = run("mha", PROMPTS[:3], watch=watch, names=[10, 11, 12])
    assert seen == {10 + i: o.ids for i, o in enumerate(outputs)}


# --- memory ---


@pytest.mark.parametrize(
    "data, tensor, dtype, batch, room, says",
    [
        (8, 1, "bfloat16", 16, 10e9, "use --mesh 4x2"),
        (1, 1, "float32", 64, 40e9, "use --batch 4"),
        (1, 1, "float32", 1, 20e9, "use --dtype bfloat16"),
        (1, 1, "float32", 1, 4e9, "1x16 would do"),
        (1, 1, "float32", 1, 1e6, "a smaller model"),
        (1, 8, "bfloat16", 16, 10e9, None),
        (8, 1, "float32", 16, None, None),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_would(data, tensor, dtype, batch, room, says):
    config = model.preset("llama-7b")
    if says is None:
        return memory.check_fit(config, data, tensor, jnp.dtype(dtype), batch, 2048, room)
    with pytest.raises(ValueError, match=says) as error:
        memory.check_fit(config, data, tensor, jnp.dtype(dtype), batch, 2048, room)
    assert "\n" not in str(error.value) and f"--mesh {data}x{tensor} puts" in str(error.value)


def test_bytes_needed_are_those_of_the_arrays():
    config, mesh, layout, weights, apart, programs = made("gqa", 1, 4)
    here = sum(w.addressable_shards[0].data.nbytes for w in weights.values())
    assert memory.bytes_needed(config, 1, 4, np.float32, 3, 32) == (
        here,
        2 * config.L * 3 * 1 * 32 * config.H * 4,
    )


# --- other programs ---


@pytest.mark.parametrize(
    "case", ["llama_mha", "llama_gqa", "gpt2_tied", "qwen2", "qwen3", "llama_biased"]
)
@pytest.mark.parametrize("batch", [1, 8])
def test_greedy_ids_equal_transformers_generate(case, batch, live):
    """A random model of transformers through its own exported files' names; eight ragged prompts
    padded on the left there, as its users do.
    """
    import test_model
    import torch

    fields = make_references.CASES[case] | {"P": 64}
    arrays, _, _ = make_references.make(fields, seed=5)
    theirs = make_references.hugging_face(fields)
    theirs.load_state_dict({n: torch.tensor(a) for n, a in arrays.items()}, strict=False)
    config = test_model.config_of(fields)
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1, fsdp=False)
    weights, specs = cache.for_decoding(
        {n: jnp.asarray(w) for n, w in test_model.from_hugging_face(arrays, config).items()},
        config,
        mesh,
        layout,
    )
    prompts = [
        np.random.RandomState(i).randint(1, config.V, size).tolist()
        for i, size in enumerate((3, 12, 1, 7, 20, 5, 2, 9))
    ]
    outputs = sorted(
        decoder.Decoder(config, mesh, layout, specs).generate(
            weights, prompts, Sampling(24), batch=batch
        )
    )
    longest = max(map(len, prompts))
    groups = [prompts] if batch == 8 else [[p] for p in prompts]
    expected = []
    for group in groups:
        longest = max(map(len, group))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in group])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in group])
        out = theirs.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=24,
            pad_token_id=0,
            eos_token_id=None,
        )
        expected += out[:, longest:].tolist()
    assert [o.ids for o in outputs] == expected


def test_stories260k_writes_its_known_text(data_dir):
    """256 greedy steps from bos, as llama2.c's documentation prints them."""
    path = str(data_dir / "models/stories260K/stories260K.bin")
    config, tok = (
        paths.model_config(path),
        tokenizer.load(str(data_dir / "models/stories260K"), roles=False),
    )
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1, fsdp=False)
    weights, specs = cache.for_decoding(
        load_weights(path, config, mesh, layout), config, mesh, layout
    )
    (out,) = decoder.Decoder(config, mesh, layout, specs).generate(
        weights, [[tok.bos]], Sampling(256, stop_ids=frozenset({tok.bos, tok.eos})), tok=tok
    )
    expected = (
        (data_dir / "models/stories260K/greedy_expected.txt").read_text(encoding="utf-8").strip()
    )
    assert (
        expected.startswith(out.text.strip()[:200])
        and out.text.strip() == expected[: len(out.text.strip())]
        and len(out.text.strip()) >= len(expected) - 2
    )
