"""The model against Hugging Face's logits, its gradients against autodiff, its published counts.

    python -m pytest tests/test_model.py                    # stored references (make_references.py)
    python -m pytest tests/test_model.py --live --data DIR  # also transformers, stories260K's text

Everything here runs on one device; what a mesh changes is tests/test_sharding.py's.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import make_references
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from checkpoint.names import file_names
from kernels.attention import positions_of
from kernels.loss import cross_entropy

REFERENCES = pathlib.Path(__file__).parent / "references"

CASES = list(make_references.CASES)


def config_of(fields):
    scaling = fields["rope_scaling"]
    return model.Config(**fields | {"rope_scaling": scaling and tuple(scaling)})


def from_hugging_face(arrays, config):
    """Our weights from arrays under Hugging Face's names, by checkpoint/names.py; the vocabulary
    padded with zero rows.
    """

    def read(row, layer):
        array = arrays[row.hf.format(layer)]
        if row.part is not None:
            array = np.split(array, 3, axis=-1)[row.part]
        return array.T if row.hf_transposed else array

    weights, names = {}, file_names(config)
    for name, row in model.weight_table(config).items():
        weight = (
            np.stack([read(names[name], layer) for layer in range(config.L)])
            if row.layered
            else read(names[name], None)
        )
        if row.dims[0] == "V":
            weight = np.pad(weight, ((0, config.padded_vocab - config.V), (0, 0)))
        assert weight.shape == model.shapes(config)[name]
        weights[name] = weight
    return weights


@functools.cache
def reference(case):
    """(config, weights, tokens, logits) of a stored case."""
    with np.load(REFERENCES / f"model_{case}.npz", allow_pickle=False) as file:
        config = config_of(json.loads(str(file["config"])))
        return config, from_hugging_face(file, config), file["tokens"], file["logits"]


@functools.cache
def one_device(config):
    return sharding.make_mesh(1, 1), model.make_layout(config, 1, 1)


@functools.cache
def logits_function(config, dtype=jnp.float32):
    return model.make_logits(config, *one_device(config), dtype)


# Compiling is most of this file's time: without XLA's fusion emitters the steps below compile five
# times as fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

X = 13  # tokens a row; 2 rows, so 24 predictions: the chunk of 7 does not divide them

PLAIN = model.StepOptions(loss_chunk=7)


@functools.cache
def step(config, options=PLAIN, gradients=True):
    """A jitted (weights, token_BX, segment_BX, weight_BT) -> (loss, gradients) on one device."""
    mesh, layout = one_device(config)

    def local(weights, token_BX, segment_BX, weight_BT):
        run = model.loss_and_gradients if gradients else model.batch_loss
        return run(weights, token_BX, segment_BX, weight_BT, config, layout, options)

    specs = layout.stacked(config)
    out = (Spec(), specs) if gradients else Spec()
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(specs, Spec(), Spec(), Spec()), out_specs=out, check_vma=False
    )
    return jax.jit(sharded, compiler_options=QUICK)


def batch(config, seed=0):
    """Random tokens [2, X], one segment a row, and weights [2, X - 1] of which a third are zero."""
    random = np.random.RandomState(seed)
    token = random.randint(0, config.V, (2, X)).astype(np.int32)
    weight = (random.rand(2, X - 1) * (random.rand(2, X - 1) > 1 / 3)).astype(np.float32)
    return token, np.ones_like(token), weight / weight.sum()


def distance(ours, reference):
    """Relative Frobenius norm of the difference."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


def assert_same_gradients(ours, reference, tolerance):
    """Every weight's. GPT-2's key biases are exempt: they shift all of a query's scores alike, so
    their gradient is zero in exact arithmetic and rounding here (RoPE's turn with the position).
    """
    assert ours.keys() == reference.keys()
    for name in ours.keys() - ({"bk"} if "pos" in ours else set()):
        error = distance(ours[name], reference[name])
        assert error <= tolerance, (name, error)


# --- Hugging Face ---


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_hugging_faces_stored_ones(case):
    """To 2e-4 of logits as large as 10: both compute in float32 and sum in different orders.

    Measured: below 1e-5.
    """
    config, weights, tokens, logits = reference(case)
    np.testing.assert_allclose(logits_function(config)(weights, tokens), logits, rtol=0, atol=2e-4)


def test_the_stored_references_are_small_and_cover_every_variant():
    assert sum(path.stat().st_size for path in REFERENCES.glob("model_*.npz")) < 300_000
    configs = [reference(case)[0] for case in CASES]
    assert {(c.family, c.tied) for c in configs} == {
        ("llama", False),
        ("llama", True),
        ("gpt2", False),
        ("gpt2", True),
    }
    assert (
        any(c.K < c.N for c in configs)
        and any(c.theta == 500000 and c.rope_scaling is None for c in configs)
        and any(c.rope_scaling for c in configs)
    )
    for case, config in zip(CASES, configs, strict=False):
        assert config == config_of(make_references.CASES[case]), (
            f"{case} was stored with another config: run tests/make_references.py"
        )


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_hugging_faces_live_ones(case, live):
    """A model with other random weights than the stored one, made and run by the installed
    transformers.
    """
    config = config_of(make_references.CASES[case])
    arrays, tokens, logits = make_references.make(
        make_references.CASES[case], seed=100 + CASES.index(case)
    )
    np.testing.assert_allclose(
        logits_function(config)(from_hugging_face(arrays, config), tokens),
        logits,
        rtol=0,
        atol=2e-4,
    )


@pytest.mark.parametrize("window", [None, make_references.T])
def test_a_mistral_whose_window_the_row_does_not_exceed_is_a_llama(window, live):
    """transformers' MistralForCausalLM; with a window shorter than the row the logits differ."""
    fields = make_references.CASES["llama_gqa"]
    config, logits = config_of(fields), logits_function(config_of(fields))
    for size, same in [(window or 10**6, True), (5, False)]:
        arrays, tokens, want = make_references.make(fields, seed=9, window=size)
        got = np.asarray(logits(from_hugging_face(arrays, config), tokens))
        assert (np.abs(got - want).max() <= 2e-4) == same


# --- real weights ---


def read_llama2c(path):
    """(config, weights) of a llama2.c file whose output matrix is the embedding: [out, in]
    matrices, RoPE on neighbouring pairs.
    """
    raw = path.read_bytes()
    D, F, L, N, K, V, P = (int(n) for n in np.frombuffer(raw, "<i4", 7))
    config = dataclasses.replace(model.llama(V, D, L, N, F, P, 1e-5, K=K), tied=True)
    flat, at, weights = np.frombuffer(raw, "<f4", offset=28), 0, {}
    table, shape = model.weight_table(config), model.shapes(config, padded=False)
    for name in "embed attn_norm wq wk wv wo mlp_norm w1 w2 w3 final_norm".split():
        matrix = table[name].layered and len(table[name].dims) == 2
        size = shape[name][:-2] + shape[name][:-3:-1] if matrix else shape[name]
        weight = flat[at : at + np.prod(size)].reshape(size)
        at += weight.size
        if file_names(config)[name].rope:  # rows (head, pair, member) -> (head, member, pair)
            weight = weight.reshape(L, -1, config.H // 2, 2, D).swapaxes(2, 3).reshape(size)
        weights[name] = np.swapaxes(weight, 1, 2) if matrix else weight
    assert V == config.padded_vocab
    return config, weights


def test_greedy_text_of_stories260k_is_what_llama2c_writes(data_dir):
    """One forward pass over the expected text: where each token of it is the likeliest after those
    before, greedy decoding writes it, by induction. 256 steps, as it was made.
    """
    import sentencepiece

    folder = data_dir / "models" / "stories260K"
    config, weights = read_llama2c(folder / "stories260K.bin")
    text = (folder / "greedy_expected.txt").read_text().rstrip("\n")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tok512.model"))
    row = np.array([[1] + pieces.encode(text)])  # 1 begins a text
    assert row.shape == (1, 257) and pieces.decode(row[0, 1:].tolist()) == text
    np.testing.assert_array_equal(
        jnp.argmax(logits_function(config)(weights, row[:, :-1]), axis=-1), row[:, 1:]
    )


# --- the pieces ---


def on_one_device(config, f, weights, *arrays):
    """f(weights, *arrays, program) inside shard_map on one device."""
    mesh, layout = one_device(config)
    program = model.Program(config, layout, model.StepOptions(loss_chunk=7))
    specs = (Spec(),) * (1 + len(arrays))
    local = jax.shard_map(
        lambda *a: f(*a, program), mesh=mesh, in_specs=specs, out_specs=Spec(), check_vma=False
    )
    return np.asarray(jax.jit(local, compiler_options=QUICK)(weights, *arrays))


@pytest.mark.parametrize("case", ["llama_gqa", "gpt2_tied"])
def test_embeddings_are_rows_of_the_tables(case):
    config, weights, tokens, _ = reference(case)
    position = np.arange(tokens.size, dtype=np.int32).reshape(tokens.shape) % 5

    def f(w, token, position, program):
        return model.embed_tokens(token, position, w, program)

    want = weights["embed"][tokens]
    if config.family == "gpt2":
        want = want + weights["pos"][position]
    np.testing.assert_allclose(on_one_device(config, f, weights, tokens, position), want, rtol=1e-6)


@pytest.mark.parametrize("case", ["llama_tied", "gpt2_untied"])
def test_output_loss_is_the_cross_entropy_of_normed_states_and_the_output_matrix(case):
    config, weights, tokens, _ = reference(case)
    x = np.random.RandomState(4).randn(*tokens.shape, config.D).astype(np.float32)
    weight = np.random.RandomState(5).rand(*tokens.shape).astype(np.float32)

    def f(w, x_BTD, target, weight, program):
        rows = model.Rows(target, target, weight, target, target)
        return model.output_loss(x_BTD, w, rows, program)

    x64 = x.astype(np.float64)
    if config.family == "gpt2":
        x64 = x64 - x64.mean(-1, keepdims=True)
    h = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + config.eps) * weights["final_norm"]
    h = h + weights.get("final_norm_b", 0)
    logits = h @ weights["embed" if config.tied else "head"][: config.V].T
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, tokens[..., None], 2)[..., 0]
    got = on_one_device(config, f, weights, x, tokens, weight)
    np.testing.assert_allclose(got, np.sum(nll * weight), rtol=1e-5)


def test_a_layer_adds_attention_of_the_norm_and_then_the_mlp_of_the_norm():
    """With an `attend` that returns its queries times two, so that attention itself is left out."""
    config, weights, _, _ = reference("llama_mha")
    w = {n: a[0] for n, a in weights.items() if model.weight_table(config)[n].layered}
    x = np.random.RandomState(6).randn(2, 5, config.D).astype(np.float32)

    def f(w, x_BTD, program):
        y_BTD, cache = model.run_layer(x_BTD, w, None, lambda q, k, v: (2 * q, "cache"), program)
        assert cache == "cache"
        return y_BTD

    def norm(x, s):
        return x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * s

    y = x + 2 * norm(x, w["attn_norm"]) @ w["wq"] @ w["wo"]
    h = norm(y, w["mlp_norm"])
    gate = h @ w["w1"]
    y = y + gate / (1 + np.exp(-gate)) * (h @ w["w3"]) @ w["w2"]
    np.testing.assert_allclose(on_one_device(config, f, w, x), y, rtol=1e-4, atol=1e-4)


# --- gradients ---

STEP_CASES = ["llama_gqa", "llama_tied", "gpt2_tied", "gpt2_untied"]


STEP_CASES += ["qwen2", "qwen3", "llama_biased"]


@pytest.mark.parametrize("case", STEP_CASES)
def test_loss_and_every_gradient_equal_autodiff_of_the_plain_cross_entropy_of_the_logits(case):
    """The gradient written by hand over the stack, with the chunked loss, against jax.grad of the
    whole logits. 1e-5 is float32's rounding over these sums.
    """
    config, weights, _, _ = reference(case)
    token, segment, weight = batch(config)

    def plain(weights):
        return cross_entropy(
            logits_function(config)(weights, token[:, :-1]), jnp.asarray(token[:, 1:]), weight
        )

    expected, gradients = jax.jit(jax.value_and_grad(plain), compiler_options=QUICK)(weights)
    loss, ours = step(config)(weights, token, segment, weight)
    assert abs(loss - expected) <= 1e-6 * abs(expected)
    assert_same_gradients(ours, gradients, 1e-5)
    for name, gradient in ours.items():
        assert (name == "bk" and "pos" in ours) or np.linalg.norm(gradient) > 1e-4, (
            f"{name}'s gradient is so small that the comparison says nothing"
        )
        if model.weight_table(config)[name].dims[0] == "V":
            assert np.all(np.asarray(gradient)[config.V :] == 0), (
                f"the padding rows of {name} must get no gradient"
            )


def test_the_loss_without_gradients_is_the_same_loss():
    config, weights, _, _ = reference("llama_gqa")
    loss = step(config, gradients=False)(weights, *batch(config))
    assert abs(loss - step(config)(weights, *batch(config))[0]) <= 1e-6 * loss


@pytest.mark.parametrize("case", ["llama_gqa", "gpt2_tied"])
def test_two_documents_packed_in_one_row_give_what_they_give_in_rows_of_their_own(case):
    config, weights, _, _ = reference(case)
    token = np.random.RandomState(1).randint(0, config.V, (2, X)).astype(np.int32)
    weight = np.random.RandomState(2).rand(2, X - 1).astype(np.float32)
    lengths = 5, 7  # tokens; the last predicts nothing, and neither does padding

    apart, packed = (
        [np.zeros_like(token), np.zeros_like(token), np.zeros_like(weight)] for _ in range(2)
    )
    start = 0
    for row, n in enumerate(lengths):
        for (to_token, to_segment, to_weight), to_row, at in [(apart, row, 0), (packed, 0, start)]:
            to_token[to_row, at : at + n], to_segment[to_row, at : at + n] = token[row, :n], row + 1
            to_weight[to_row, at : at + n - 1] = weight[row, : n - 1]
        start += n
    expected, gradients = step(config)(weights, *apart)
    loss, ours = step(config)(weights, *packed)
    assert abs(loss - expected) <= 1e-6 * abs(expected)
    assert_same_gradients(ours, gradients, 1e-5)
    whole = step(config)(weights, packed[0], np.ones_like(token), packed[2])[0]
    assert abs(whole - expected) > 1e-3 * abs(expected), (
        "without segments the second document would see the first"
    )


@pytest.mark.parametrize("case", ["llama_gqa", "gpt2_untied"])
def test_a_prediction_has_a_gradient_of_exactly_zero_by_every_later_token(case):
    config, weights, _, _ = reference(case)
    token = np.arange(2 * X, dtype=np.int32).reshape(
        2, X
    )  # all different: a token's row of the embedding is that token's alone
    weight = np.zeros((2, X - 1), np.float32)
    weight[1, 4] = 1  # the prediction made at position 4 of the second row
    gradients = step(config)(weights, token, np.ones_like(token), weight)[1]
    moved = np.any(np.asarray(gradients["embed"]) != 0, axis=1)
    assert set(np.flatnonzero(moved)) == set(token[1, :5])
    if config.family == "gpt2":
        assert set(np.flatnonzero(np.any(np.asarray(gradients["pos"]) != 0, axis=1))) == set(
            range(5)
        )


def test_a_document_has_a_gradient_of_exactly_zero_by_the_others_of_its_row():
    config, weights, _, _ = reference("llama_gqa")
    token = np.arange(2 * X, dtype=np.int32).reshape(2, X)
    segment = np.repeat([[1] * 4 + [2] * 6 + [3] * 3], 2, axis=0).astype(np.int32)
    weight = np.zeros((2, X - 1), np.float32)
    weight[0, 8] = 1
    gradients = step(config)(weights, token, segment, weight)[1]
    assert set(np.flatnonzero(np.any(np.asarray(gradients["embed"]) != 0, axis=1))) == set(
        token[0, 4:9]
    )


def test_positions_restart_at_each_document():
    segment = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [4, 3, 3, 3, 3, 3, 9]])
    np.testing.assert_array_equal(
        positions_of(segment), [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 0]]
    )


@pytest.mark.parametrize("case", ["llama_gqa", "gpt2_tied"])
def test_bfloat16_compute_stays_close_to_float32(case):
    """bfloat16 rounds at 2^-8 and two layers make of it 0.3 to 1.3 % in the gradients here (plain
    autodiff as much): 2.5 % are allowed. Weights and results stay float32. The matrices are brought
    down to the size of trained ones: at the references' own, attention is so sharp that any
    rounding is magnified.
    """
    config, weights, _, _ = reference(case)
    table = model.weight_table(config)
    weights = {
        n: w * np.float32(0.3) if table[n].init in ("matrix", "residual") else w
        for n, w in weights.items()
    }
    expected, gradients = step(config)(weights, *batch(config))
    loss, ours = step(config, model.StepOptions(dtype=jnp.bfloat16, loss_chunk=7))(
        weights, *batch(config)
    )
    assert loss.dtype == jnp.float32 and all(g.dtype == jnp.float32 for g in ours.values())
    assert 0 < abs(loss - expected) <= 1e-3 * expected
    assert_same_gradients(ours, gradients, 2.5e-2)
