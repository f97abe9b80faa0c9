"""The engine held to Decoder.generate: whoever comes, goes, shares a beginning or waits.

python -m pytest tests/serve/test_engine.py
"""

import dataclasses
import functools
import gc
import random
import time
import types

import numpy as np
import pytest
from evaluations import place  # noqa: F401

import model
import sharding
from decoding import cache, decoder, memory
from decoding.likelihood import Scorer
from decoding.records import Request, Sampling
from serve.engine import Engine, open_models
from serve.records import Ask, Busy, Delta, Echo, End, Failed

CONFIG = dataclasses.replace(model.llama(300, 24, 2, 6, 36, 1000, 1e-5), N=8, K=2, H=4)
draw = np.random.RandomState(0)
SHARED = draw.randint(1, 300, 300).tolist()
PROMPTS = [draw.randint(1, 300, size).tolist() for size in (3, 1, 20, 7, 80, 5, 40, 13)]
PROMPTS += [SHARED + p for p in PROMPTS[:4]] + [draw.randint(1, 300, 700).tolist()]
STOP = 7


class Letters:
    """A tokenizer of which id i is the letter i modulo 26, a space before every fifth; even ids end
    in two thirds of a euro sign, odd ones begin with its last.
    """

    def decode_bytes(self, ids):
        def piece(i):
            letter = (b" " if i % 5 == 0 else b"") + bytes([97 + i % 26])
            return b"\xac" + letter if i % 2 else letter + b"\xe2\x82"

        return b"".join(map(piece, ids))


@functools.cache
def toy(data=1, tensor=1, seed=0, length=None):
    """What the engine needs of an Opened, of a random model."""
    mesh = sharding.make_mesh(data, tensor)
    layout = model.make_layout(CONFIG, data, tensor, fsdp=False)
    weights = {
        n: w * (3 if w.ndim == 3 else 1)
        for n, w in model.initialise(CONFIG, mesh, layout, seed).items()
    }
    apart, specs = cache.for_decoding(dict(weights), CONFIG, mesh, layout)
    programs = decoder.Decoder(CONFIG, mesh, layout, specs)
    return types.SimpleNamespace(
        config=CONFIG,
        layout=layout,
        length=length,
        mesh=mesh,
        tok=Letters(),
        stop_ids=frozenset({STOP}),
        stacked=weights,
        decoder=lambda: (programs, apart),
    )


def expected(opened, prompts, sampling):
    """What generate gives on the same list: (ids, text, reason) of each sample in order."""
    programs, weights = opened.decoder()
    sampling = dataclasses.replace(sampling, stop_ids=sampling.stop_ids | opened.stop_ids)
    outputs = sorted(programs.generate(weights, prompts, sampling, opened.tok, batch=4))
    return [(o.ids, o.text, o.reason) for o in outputs]


@pytest.fixture
def start():
    """Engines that are stopped at the end."""
    engines = []

    def started(models=None, **how):
        engine = Engine(models or {"toy": toy()}, **({"batch": 8} | how))
        engine.start()
        engines.append(engine)
        return engine

    yield started
    for engine in engines:
        engine.stop(0)


def ends_of(ticket):
    """All events -> (ids, text, reason) of each sample, held to its Deltas."""
    events = list(ticket)
    assert not [e for e in events if isinstance(e, Failed)], events
    ends = sorted((e for e in events if isinstance(e, End)), key=lambda e: e[:2])
    for end in ends:
        deltas = [e for e in events if isinstance(e, Delta) and e[:2] == end[:2]]
        assert sum((d.ids for d in deltas), []) == end.ids
        assert "".join(d.text for d in deltas) == end.text
        if end.scores is not None:
            assert sum((d.scores for d in deltas), []) == end.scores
    return [(e.ids, e.text, e.reason) for e in ends]


def test_a_request_gets_what_generate_gives(start):
    engine = start()
    ticket = engine.submit(Ask("toy", PROMPTS, Sampling(20)))
    assert ends_of(ticket) == expected(toy(), PROMPTS, Sampling(20))
    assert engine.counts().running == engine.counts().waiting == 0


SETTINGS = [
    Sampling(25),
    Sampling(9, temperature=0.8, top_k=40, seed=3, n=2),
    Sampling(30, temperature=1.3, top_p=0.9, seed=2**32 - 1),
    Sampling(40, stop_strings=("a", " k")),
    Sampling(17, temperature=1.0, n=3, stop_strings=("zz", "e")),
]


@pytest.mark.parametrize("data, tensor", [(1, 1), (2, 1), (1, 2)])
def test_random_arrivals_cancels_and_settings_change_nothing(start, data, tensor):
    """Thirty requests of one to three prompts, of which every fifth is given up under way."""
    dice = random.Random(data * 10 + tensor)
    engine = start({"toy": toy(data, tensor)}, batch=8, queue=500)
    asked = []
    for i in range(30):
        prompts = dice.sample(PROMPTS, dice.choice([1, 1, 2, 3]))
        ask = Ask("toy", prompts, dice.choice(SETTINGS), logprobs=dice.choice([None, None, 5]))
        asked.append(engine.submit(ask))
        if i % 5 == 4:
            dice.choice(asked).cancel()
        if i % 3 == 0:
            time.sleep(0.05)
    kept = [ticket for ticket in asked if not ticket.cancelled]
    assert len(kept) >= 24
    for ticket in kept:
        ask = ticket.ask
        assert ends_of(ticket) == expected(toy(data, tensor), ask.prompts, ask.sampling)
    settled(engine)


def settled(engine):
    """Every slot is free and nothing waits."""
    for _ in range(200):
        counts = engine.counts()
        if not counts.running and not counts.waiting:
            break
        time.sleep(0.05)
    assert counts.running == counts.waiting == 0
    for lane in engine.lanes.values():
        assert not lane.jobs and not lane.pool.readers
        assert not any(lane.pool.slots) and not lane.pool.state["live"].any()


# --- scores ---


def scored(opened, ids, begin):
    """(log-probability, likeliest id) of ids[begin:] by the Scorer, as eval.py loglik has them."""
    scorer = Scorer(CONFIG, opened.mesh, opened.layout)
    request = Request(ids, list(range(begin - 1, len(ids) - 1)), [[i] for i in ids[begin:]])
    ((_, logp, best, _),) = scorer.score(opened.stacked, [request])
    return logp[:, 0], best.tolist()


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_scores_of_what_is_said_are_those_of_loglik(start, k, temperature):
    """The temperature and the filter change who is chosen, not the scores."""
    engine = start()
    sampling = Sampling(12, temperature=temperature, top_k=30 if temperature else 0)
    (end,) = [e for e in engine.submit(Ask("toy", [PROMPTS[2]], sampling, k)) if isinstance(e, End)]
    logp, best = scored(toy(), PROMPTS[2] + end.ids, 20)
    assert [s.id for s in end.scores] == end.ids
    np.testing.assert_allclose([s.logprob for s in end.scores], logp, atol=1e-4, rtol=0)
    for score, likeliest in zip(end.scores, best, strict=True):
        assert len(score.top) == k
        values = [value for _, value in score.top]
        assert values == sorted(values, reverse=True)
        if k:
            assert score.top[0][0] == likeliest
        assert all(value == pytest.approx(score.logprob) for i, value in score.top if i == score.id)


def test_the_token_that_ends_a_sample_has_its_score(start):
    engine = start()
    (whole,) = [
        e for e in engine.submit(Ask("toy", [PROMPTS[2]], Sampling(4), 1)) if isinstance(e, End)
    ]
    cut = whole.ids.index(whole.ids[-1])
    sampling = Sampling(4, stop_ids=frozenset([whole.ids[-1]]))
    (end,) = [e for e in engine.submit(Ask("toy", [PROMPTS[2]], sampling, 1)) if isinstance(e, End)]
    assert (end.reason, end.ids, whole.stop) == ("stop", whole.ids[:cut], None)
    assert end.scores == whole.scores[:cut] and end.stop.id == whole.ids[cut]
    assert end.stop.logprob == pytest.approx(whole.scores[cut].logprob, abs=1e-5)


@pytest.mark.parametrize("data, tensor", [(1, 1), (2, 1)])
def test_echoed_scores_are_those_of_loglik_whatever_was_read_before(start, data, tensor):
    """Prompts that share 300 tokens, one of 700 read by pieces, one of a single token; then all
    once more, when most of them is in the cache.
    """
    engine = start({"toy": toy(data, tensor)}, batch=16)
    engine.submit(Ask("toy", [SHARED + [9, 9]], Sampling(2))).wait(9)  # read without scores
    for again in (False, True):
        ticket = engine.submit(Ask("toy", PROMPTS, Sampling(0), logprobs=1, echo=True))
        events = list(ticket)
        echoes = {e.prompt: e for e in events if isinstance(e, Echo)}
        ends = [e for e in events if isinstance(e, End)]
        assert len(ends) == len(echoes) == len(PROMPTS)
        assert {(tuple(e.ids), e.text, e.reason) for e in ends} == {((), "", "length")}
        for at, prompt in enumerate(PROMPTS):
            scores = echoes[at].scores
            assert [s.id for s in scores] == echoes[at].ids == prompt
            assert scores[0].logprob is None and not scores[0].top
            if len(prompt) > 1:
                logp, best = scored(toy(data, tensor), prompt, 1)
                found = [s.logprob for s in scores[1:]]
                np.testing.assert_allclose(found, logp, atol=1e-4, rtol=0)
                assert [s.top[0][0] for s in scores[1:]] == best
        assert sum(e.cached for e in ends) >= (1900 if again else 890)
    settled(engine)


def test_echo_and_an_answer_with_five_likeliest_in_one_request(start):
    engine = start()
    events = list(engine.submit(Ask("toy", [PROMPTS[2]], Sampling(4, n=2), 5, echo=True)))
    assert isinstance(events[0], Echo) and len(events[0].scores[1].top) == 5
    assert sum(isinstance(e, Echo) for e in events) == 1
    assert sum(isinstance(e, End) for e in events) == 2
    events = list(engine.submit(Ask("toy", [PROMPTS[2]], Sampling(4), None, echo=True)))
    assert events[0] == Echo(0, PROMPTS[2], None)


# --- the cache ---


def test_what_prompts_share_is_read_once(start):
    """Eight prompts that begin with 300 tokens, at once and then one by one."""
    engine = start()
    prompts = [SHARED + [i, i] for i in range(8, 16)]
    assert ends_of(engine.submit(Ask("toy", prompts, Sampling(5)))) == expected(
        toy(), prompts, Sampling(5)
    )
    first = engine.counts()
    assert first.cached_tokens >= 7 * 290 and first.prompt_tokens == 8 * 302
    ends_of(engine.submit(Ask("toy", [SHARED + [20]], Sampling(5))))
    assert engine.counts().cached_tokens - first.cached_tokens >= 299


def test_a_conversation_goes_on_where_it_was(start):
    engine = start()
    ids, *_ = ends_of(engine.submit(Ask("toy", [PROMPTS[4]], Sampling(40))))[0]
    turn = PROMPTS[4] + ids + PROMPTS[2]
    events = list(engine.submit(Ask("toy", [turn], Sampling(5))))
    assert events[-1].cached == len(PROMPTS[4] + ids) - 1 >= 80
    assert [(e.ids, e.text, e.reason) for e in events[-1:]] == expected(toy(), [turn], Sampling(5))


def test_the_cache_grows_with_who_is_in_it_and_shrinks_after(start):
    engine = start(batch=32)
    pool = engine.lanes["toy"].pool
    assert pool.kv[0][0].shape[::2] == (8, 128)
    assert ends_of(engine.submit(Ask("toy", PROMPTS * 2, Sampling(20)))) == expected(
        toy(), PROMPTS * 2, Sampling(20)
    )
    assert pool.kv[0][0].shape[::2] == (32, 1024)
    for _ in range(40):
        ends_of(engine.submit(Ask("toy", [PROMPTS[0]], Sampling(2))))
    assert pool.kv[0][0].shape[::2] == (8, 128)


@pytest.mark.parametrize("data", [1, 2])
def test_who_came_last_waits_where_all_grow_long_and_nothing_is_lost(start, data):
    """Memory for 4 x 256 positions: four answers of 300 tokens do not fit beside one another."""
    engine = start({"toy": toy(data, length=256)}, batch=4)
    sampling = Sampling(300, temperature=1.0, seed=1)
    assert engine.positions("toy") == (1000 if data == 1 else 512)
    prompts = [p for p in PROMPTS if len(p) < 100][:6]
    assert ends_of(engine.submit(Ask("toy", prompts, sampling))) == expected(
        toy(data), prompts, sampling
    )
    assert engine.lanes["toy"].total("preempted") > 0
    settled(engine)


def test_while_a_long_prompt_is_read_the_others_go_on(start, slow_steps):
    engine = start()
    talking = engine.submit(Ask("toy", [PROMPTS[0]], Sampling(400)))
    assert talking.wait(60)
    long = draw.randint(1, 300, 990).tolist()
    reads, read = [], engine.lanes["toy"].decoder.read

    def counted(weights, token, *rest, **how):
        reads.append((int((token["tree"] > 0).sum()), engine.counts().new_tokens))
        return read(weights, token, *rest, **how)

    engine.lanes["toy"].decoder.read = counted
    try:
        assert ends_of(engine.submit(Ask("toy", [long], Sampling(5)))) == expected(
            toy(), [long], Sampling(5)
        )
    finally:
        engine.lanes["toy"].decoder.read = read
    assert [size for size, _ in reads][:2] == [512, 477]
    talking.cancel()


# --- bounds ---


@pytest.fixture
def slow_steps(monkeypatch):
    """Every look takes a twentieth of a second more, and no answer ends by itself."""
    programs, _ = toy().decoder()
    steps = programs.steps

    def slow(*rest, **how):
        time.sleep(0.05)
        return steps(*rest, **how)

    monkeypatch.setattr(programs, "steps", slow)
    monkeypatch.setattr(toy(), "stop_ids", frozenset())


def test_what_does_not_fit_is_refused(start, slow_steps):
    engine = start(queue=10)
    for ask, says in [
        (Ask("other", [[1]], Sampling(1)), "no model 'other': use toy"),
        (Ask("toy", [[1]], Sampling(0)), "0 new tokens"),
        (Ask("toy", [[]], Sampling(1)), "a prompt of 0 tokens"),
        (Ask("toy", [[1] * 1000], Sampling(1)), "a prompt of 1000 tokens: 1 to 999 fit"),
        (Ask("toy", [[300]], Sampling(1)), "outside the model's 300"),
        (Ask("toy", [[1]], Sampling(1, n=11)), "11 samples: 1 to 10"),
        (Ask("toy", [], Sampling(1)), "0 samples"),
        (Ask("toy", [[1]], Sampling(1), logprobs=21), "0 to 20"),
    ]:
        with pytest.raises(ValueError, match=says):
            engine.submit(ask)
    tickets = [engine.submit(Ask("toy", [[1]], Sampling(900, n=8)))]
    with pytest.raises(Busy, match="10 may"):
        for _ in range(4):
            tickets.append(engine.submit(Ask("toy", [[1]], Sampling(900, n=8))))
    for ticket in tickets:
        ticket.cancel()
    settled(engine)


def test_who_runs_out_of_time_is_told_and_the_slots_are_free(start, slow_steps):
    engine = start()
    events = list(engine.submit(Ask("toy", [PROMPTS[0]], Sampling(900), seconds=0.3)))
    assert events[-1].reason == "timeout" and "0.3 seconds" in events[-1].message
    settled(engine)
    assert engine.counts().abandoned == 1


def test_stopping_lets_the_running_finish_within_grace(start, slow_steps):
    engine = start()
    short = engine.submit(Ask("toy", [PROMPTS[0]], Sampling(20)))
    engine.stop(60)
    assert ends_of(short) == expected(toy(), PROMPTS[:1], Sampling(20))
    with pytest.raises(Busy, match="stopping"):
        engine.submit(Ask("toy", [[1]], Sampling(1)))
    engine = start()
    long = engine.submit(Ask("toy", [PROMPTS[0]], Sampling(900)))
    assert long.wait(60)
    engine.stop(0)
    assert list(long)[-1].reason == "stopped"


def test_an_exception_fails_who_is_in_it_and_nobody_else(start, slow_steps, capfd):
    engine = start()
    programs, steps = engine.lanes["toy"].decoder, engine.lanes["toy"].decoder.steps
    long = engine.submit(Ask("toy", [PROMPTS[0]], Sampling(900)))
    assert long.wait(60)

    def broken(*rest, **how):
        programs.steps = steps
        raise RuntimeError("out of memory")

    programs.steps = broken
    try:
        assert list(long)[-1] == Failed("error", "the model failed: RuntimeError: out of memory")
    finally:
        programs.steps = steps
    assert "Traceback" in capfd.readouterr().err
    assert ends_of(engine.submit(Ask("toy", PROMPTS[:4], Sampling(20)))) == expected(
        toy(), PROMPTS[:4], Sampling(20)
    )
    settled(engine)


def test_models_are_planned_together_and_refused_with_the_number(place, monkeypatch):  # noqa: F811
    """Memory for exactly two models, and for one byte less."""
    paths = {"base": str(place / "base"), "tuned": str(place / "tuned")}
    how = dict(mesh="1x1", dtype="float32", batch=4)
    models = open_models(paths, **how)
    assert [(o.batch, o.length) for o in models.values()] == [(4, 256)] * 2
    need = sum(sum(memory.bytes_needed(o.config, 1, 1, o.dtype, 4, 256)) for o in models.values())
    monkeypatch.setattr(memory, "SHARE", 1)
    monkeypatch.setattr(memory, "device_room", lambda mesh: need)
    assert list(open_models(paths, **how)) == ["base", "tuned"]
    monkeypatch.setattr(memory, "device_room", lambda mesh: need - 1)
    with pytest.raises(ValueError, match=r"--batch 4, .*\) beside \d.* of other models on each"):
        open_models(paths, **how)


def test_a_warm_engine_compiles_nothing_for_the_first_question(start):
    engine = start()
    engine.warm("toy")
    programs, _ = toy().decoder()
    compiled = programs.steps._cache_size(), programs.read._cache_size()
    for temperature in (0, 1):
        ask = Ask("toy", [PROMPTS[4]], Sampling(20, temperature=temperature))
        ends_of(engine.submit(ask))
    assert (programs.steps._cache_size(), programs.read._cache_size()) == compiled


def test_several_models_take_turns(start):
    engine = start({"one": toy(), "two": toy(seed=1)})
    tickets = [engine.submit(Ask(name, PROMPTS[:5], Sampling(20))) for name in ("one", "two")]
    assert [ends_of(ticket) for ticket in tickets] == [
        expected(opened, PROMPTS[:5], Sampling(20)) for opened in (toy(), toy(seed=1))
    ]


def test_a_short_question_is_answered_beside_a_long_list(start, slow_steps):
    engine = start(batch=2, queue=200)
    many = engine.submit(Ask("toy", [PROMPTS[2]], Sampling(6, temperature=1.0, n=60)))
    assert many.wait(60)
    ends_of(engine.submit(Ask("toy", [PROMPTS[0]], Sampling(6))))
    assert many.left + engine.lanes["toy"].jobs[0].left > 60
    many.cancel()


def test_half_a_character_and_half_a_stop_string_are_not_shown(start):
    engine = start()
    whole = ends_of(engine.submit(Ask("toy", PROMPTS[:6], Sampling(60))))
    assert "€" in "".join(text for _, text, _ in whole)
    stops = tuple(text[20:24] for _, text, _ in whole if len(text) > 30)
    assert stops
    sampling = Sampling(60, stop_strings=stops)
    ticket = engine.submit(Ask("toy", PROMPTS[:6], sampling))
    events, shown = list(ticket), {}
    for e in events:
        if isinstance(e, Delta):
            shown[e.prompt] = shown.get(e.prompt, "") + e.text
            ended = [x for x in events if isinstance(x, End) and x.prompt == e.prompt][0]
            assert ended.text.startswith(shown[e.prompt])
    ends = sorted(e for e in events if isinstance(e, End))
    assert [(e.ids, e.text, e.reason) for e in ends] == expected(toy(), PROMPTS[:6], sampling)
    assert any(e.reason == "stop" for e in ends)


@pytest.mark.slow
def test_two_thousand_requests_leave_nothing_behind(start):
    engine = start(queue=4000)
    ends_of(engine.submit(Ask("toy", PROMPTS, Sampling(4))))
    before = None
    for part in range(4):
        tickets = [
            engine.submit(Ask("toy", [PROMPTS[i % 8]], Sampling(4, temperature=1.0, seed=i)))
            for i in range(500)
        ]
        for i, ticket in enumerate(tickets):
            if i % 2:
                ticket.cancel()
            else:
                ends_of(ticket)
        settled(engine)
        gc.collect()
        objects = len(gc.get_objects())
        before = before or objects
        assert objects < 1.02 * before + 2000, part
    counts = engine.counts()
    assert counts.finished + counts.abandoned == 2000 + len(PROMPTS)
