"""The store of votes: slots, leases, balance, gold items, and files that are not its own."""

import collections
import sqlite3
import threading

import pytest

from web.votes import Compared, Store

ITEMS = [
    {"id": n, "instruction": f"question {n}", "a": f"this {n}", "b": f"that {n}"} for n in range(5)
]


def make(path, items=ITEMS, **more):
    return Store(path / "votes.sqlite", items, {"a": "secret-a", "b": "secret-b"}, **more)


def rate(store, rater, n=100, side="first"):
    done = []
    while len(done) < n and (slot := store.take(rater)):
        assert store.vote(rater, slot["lease"], side)
        done.append(slot["item"])
    return done


def test_each_item_gets_three_different_raters_and_a_fourth_gets_none(tmp_path):
    store = make(tmp_path)
    for rater in "xyz":
        assert len(set(rate(store, rater))) == 5
    assert store.take("w") is None
    votes = store.votes()
    assert {
        len({v["rater"] for v in votes if v["item"] == i}) for i in {v["item"] for v in votes}
    } == {3} and len(votes) == 15


def test_items_fill_evenly(tmp_path):
    store = make(tmp_path)
    for turn in range(10):
        rate(store, f"r{turn}", 1)  # who rated an item already may have to take another
        counts = collections.Counter(v["item"] for v in store.votes())
        assert (
            max(counts.values()) - min([counts[i] for i in counts] if len(counts) == 5 else [0])
            <= 1
        )


def test_a_rater_who_asks_twice_gets_the_same_slot(tmp_path):
    store = make(tmp_path)
    assert store.take("x")["lease"] == store.take("x")["lease"]


def test_the_sides_are_drawn_and_the_vote_is_kept_by_answer_not_by_side(tmp_path):
    store = make(
        tmp_path,
        [{"id": n, "instruction": "q", "a": f"a{n}", "b": f"b{n}"} for n in range(40)],
        per_item=1,
    )
    rate(store, "x", side="second")
    votes = store.votes()
    assert 5 < sum(v["first"] == "a" for v in votes) < 35
    assert all(v["choice"] != v["first"] for v in votes)


def test_a_slot_given_back_or_run_out_goes_to_another(tmp_path):
    store = make(tmp_path, ITEMS[:1], per_item=1, lease_s=60)
    slot = store.take("x", now=1000)
    assert store.take("y", now=1059) is None
    other = store.take("y", now=1061)
    assert other["item"] == slot["item"] and not store.vote("x", slot["lease"], "first", now=1062)
    assert store.leave("y", other["lease"]) and store.take("z", now=1063)["item"] == slot["item"]


def test_a_held_lease_does_not_run_out_and_a_late_vote_counts_while_nobody_took_the_slot(tmp_path):
    store = make(tmp_path, ITEMS[:1], per_item=1, lease_s=60)
    slot = store.take("x", now=1000)
    assert store.hold("x", slot["lease"], now=1050) and store.take("y", now=1100) is None
    assert store.vote("x", slot["lease"], "equal", now=5000) and store.votes()[0]["choice"] == "tie"


def test_a_vote_sent_again_is_taken_once_and_cannot_be_turned(tmp_path):
    store = make(tmp_path)
    lease = store.take("x")["lease"]
    assert (
        store.vote("x", lease, "first")
        and store.vote("x", lease, "first")
        and not store.vote("x", lease, "second")
    )
    assert not store.vote("y", lease, "first") and not store.leave("x", lease)
    assert [v["choice"] for v in store.votes()] == [store.votes()[0]["first"]]


def test_the_file_itself_refuses_a_second_rater_in_a_slot_and_a_rater_twice_on_an_item(tmp_path):
    store = make(tmp_path)
    slot = store.take("x")
    for place, rater in ((slot["place"], "y"), (slot["place"] + 1, "x")):
        with pytest.raises(sqlite3.IntegrityError), store.transaction() as c:
            c.execute(
                "insert into slots values ('new', ?, ?, ?, 'a', 0, 0, null, null)",
                (slot["item"], place, rater),
            )


def test_threads_never_share_a_slot(tmp_path):
    store = make(tmp_path, per_item=2)
    got, start = [], threading.Barrier(8)

    def work(n):
        start.wait()
        got.append(store.take(f"r{n}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert (
        len({(g["item"], g["place"]) for g in got}) == 8
        and max(collections.Counter(g["item"] for g in got).values()) == 2
    )


def test_every_rater_meets_gold_items_among_the_first_stretch(tmp_path):
    gold = [
        {"id": "g", "instruction": "pick the sane one", "a": "sane", "b": "gibberish", "gold": "a"}
    ]
    store = make(
        tmp_path,
        [*({"id": n, "instruction": "q", "a": "1", "b": "2"} for n in range(10)), *gold],
        per_item=4,
        gold_every=5,
    )
    for rater in "wxyz":
        rate(store, rater, 5)
    assert sorted(v["rater"] for v in store.votes() if v["gold"]) == list("wxyz")
    assert store.progress()["wanted"] == 40 and store.progress()["votes"] == 16


def test_a_file_of_other_inputs_or_of_something_else_is_refused_in_one_line(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="other inputs"):
        make(tmp_path, ITEMS[1:])
    with pytest.raises(ValueError, match="other inputs"):
        make(tmp_path, per_item=5)
    assert make(tmp_path).per_item == 3
    sqlite3.connect(tmp_path / "other.sqlite").execute("create table t (x)").connection.commit()
    with pytest.raises(ValueError, match="something else"):
        Store(tmp_path / "other.sqlite", ITEMS)
    (tmp_path / "text").write_text(
        "no database at all, but long enough to be taken for the header of one" * 20
    )
    with pytest.raises(ValueError, match="cannot be read"):
        Store(tmp_path / "text", ITEMS)
    with pytest.raises(ValueError, match="does not exist"):
        Store(tmp_path / "nothing")


# --- votes of a talk ---


def compared(lease="r-01", choice="a", **more):
    values = {
        "lease": lease,
        "rater": "me",
        "question": "q",
        "answers": {"a": "x", "b": "y"},
        "models": {"a": "one", "b": "two"},
        "first": "b",
        "choice": choice,
        "seconds": 4.0,
        "settings": {"seed": 1},
    }
    return Compared(**(values | more))


def test_votes_of_a_talk_bring_their_items(tmp_path):
    store = Store(tmp_path / "v", [], per_item=1)
    assert store.votes() == [] and store.add([compared(), compared("r-02", "tie")])
    assert Store(tmp_path / "v", [], per_item=1).votes() == store.votes()
    vote = store.votes()[0]
    assert vote["models"] == {"a": "one", "b": "two"} and round(vote["seconds"]) == 4
    assert (vote["instruction"], vote["a"], vote["b"]) == ("q", "x", "y")
    assert (vote["first"], vote["choice"], vote["rater"]) == ("b", "a", "me")


def test_all_votes_of_a_question_are_kept_or_none(tmp_path):
    store = Store(tmp_path / "v", [], per_item=1)
    assert store.add([compared()]) and store.add([compared()])
    assert not store.add([compared("r-02"), compared(choice="b")])
    assert [v["source"] for v in store.votes()] == ["r-01"]


def test_votes_of_a_rating_have_the_names_of_its_file_also_where_it_is_old(tmp_path):
    store = make(tmp_path)
    rate(store, "x", 1)
    with store.transaction() as c:
        c.execute("drop table talks")
    votes = make(tmp_path).votes()
    assert [v["models"] for v in votes] == [{"a": "secret-a", "b": "secret-b"}]
