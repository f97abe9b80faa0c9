"""The store behind the rating page: items, slots that raters take, votes, in one SQLite file.

    python -m study.rate A B --db votes.sqlite                # what fills it
    python -m serve --model A B --votes votes.sqlite          # ... or a talk that was voted on
    sqlite3 votes.sqlite 'select * from slots'                # ... and reads it

Every item has `per_item` slots. A rater takes a slot for a while (a lease) and fills it with a vote
or gives it back; a lease that ran out goes to whoever comes next, and until somebody did, a late
vote still counts. Gold items (whose answer is known) have a slot for every rater. Slots are taken
under BEGIN IMMEDIATE and UNIQUE constraints, so two raters, threads or servers cannot hold one; a
vote is committed with synchronous=FULL before vote() returns. A talk's file has no items at first:
each vote brings its own, and says in `talks` which two models it compares (`add`). Left out: who a
rater is, what the votes say (study/rate/preference.py).
"""

import contextlib
import hashlib
import json
import pathlib
import random
import secrets
import sqlite3
import time
from collections.abc import Iterator
from typing import NamedTuple

APPLICATION = 0x6D796E61  # PRAGMA application_id: "myna"
SCHEMA = """
create table meta (name text primary key, value text not null);
create table items (id text primary key, source text not null, instruction text not null,
                    a text not null, b text not null,
                    gold text check (gold in ('a', 'b', 'tie')));
create table slots (lease text primary key, item text not null references items,
                    place integer not null, rater text not null,
                    first text not null check (first in ('a', 'b')),
                    taken real not null, until real not null,
                    choice text check (choice in ('a', 'b', 'tie')), voted real,
                    unique (item, place), unique (item, rater));
create table sessions (digest text primary key, rater text not null);
"""
TALKS = """create table if not exists talks (
                    item text primary key references items, a text not null, b text not null,
                    settings text not null)"""


class Compared(NamedTuple):
    """One vote of a talk: a question, the answers of models a and b to it, and which is better."""

    lease: str  # names this vote: the same again is no second one
    rater: str
    question: str
    answers: dict  # {"a", "b"}: texts
    models: dict  # {"a", "b"}: names
    first: str  # "a" or "b": which stood first
    choice: str  # "a", "b" or "tie"
    seconds: float  # from the last answer's end to the vote
    settings: dict  # how they were asked, and the talk until there


class Store:
    """Store(path, items=None, names=None, per_item=3, lease_s=600, gold_every=10): an existing file
    must hold the same items; without items, a file that exists.

    items: list of {"id", "instruction", "a", "b"} and, for gold ones, "gold" ("a" | "b" | "tie":
    what the answer must be). names: {"a": name, "b": name}, kept for the results. ValueError, one
    line, for a file of other inputs or none of ours.
    """

    def __init__(
        self,
        path,
        items: list[dict] | None = None,
        names=None,
        per_item: int = 3,
        lease_s=600,
        gold_every: int = 10,
    ):
        self.path, self.lease_s, self.gold_every = pathlib.Path(path), lease_s, gold_every
        if items is None and not self.path.is_file():
            raise ValueError(f"{path} does not exist: name a file of votes")
        if not self.path.parent.is_dir():
            raise ValueError(
                f"{path}: the folder {self.path.parent} does not exist: make it, or name another"
            )
        with self.transaction() as c:
            known = c.execute("pragma application_id").fetchone()[0]
            tables = c.execute("select count(*) from sqlite_master").fetchone()[0]
            if known != APPLICATION and (tables or items is None):
                raise ValueError(f"{path} is a database of something else: name another file")
            if not tables:
                self._fill(c, items, names or {"a": "A", "b": "B"}, per_item)
            c.execute(TALKS)  # a file of an older version has none
            rows = c.execute("select name, value from meta").fetchall()
            self.meta = {name: json.loads(value) for name, value in rows}
        if items is not None and self.meta["fingerprint"] != fingerprint(items, per_item):
            raise ValueError(
                f"{path} holds votes on other inputs (answers, gold items or --raters differ, or "
                "they are a talk's): give the ones it was made with, or name another file"
            )
        self.per_item, self.names = self.meta["per_item"], self.meta["names"]

    def _fill(self, c, items, names, per_item):
        for statement in SCHEMA.strip().split(";\n"):
            c.execute(statement)
        meta = {
            "fingerprint": fingerprint(items, per_item),
            "per_item": per_item,
            "names": names,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        c.executemany(
            "insert into meta values (?, ?)", [(k, json.dumps(v)) for k, v in meta.items()]
        )
        c.executemany(
            "insert into items values (?, ?, ?, ?, ?, ?)",
            [
                (
                    secrets.token_hex(8),
                    str(i["id"]),
                    i["instruction"],
                    i["a"],
                    i["b"],
                    i.get("gold"),
                )
                for i in items
            ],
        )
        c.execute(f"pragma application_id = {APPLICATION}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection inside BEGIN IMMEDIATE: committed (and on disk) when the block is left,
        rolled back on any exception.
        """
        c = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            c.row_factory = sqlite3.Row
            c.execute("pragma journal_mode = wal")
            c.execute(
                "pragma synchronous = full"
            )  # WAL's default would lose the last commits with the power
            c.execute("pragma foreign_keys = on")
            c.execute("begin immediate")
            try:
                yield c
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    c.execute("rollback")
                raise
            c.execute("commit")
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a bug
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path} cannot be read as votes ({error}): name another file, restore a "
                f"copy, or save what is left with `sqlite3 {self.path} .recover | sqlite3 NEW`"
            ) from None
        finally:
            c.close()

    # --- raters ---

    def enter(self, rater: str) -> str:
        """A new session of a rater -> its secret; kept here is its digest alone."""
        secret = secrets.token_urlsafe(24)
        with self.transaction() as c:
            c.execute("insert into sessions values (?, ?)", (digest(secret), rater))
        return secret

    def rater(self, secret: str | None) -> str | None:
        """The rater of a session, or None."""
        with self.transaction() as c:
            row = c.execute(
                "select rater from sessions where digest = ?", (digest(secret or ""),)
            ).fetchone()
        return row and row["rater"]

    # --- slots ---

    def take(self, rater: str, now: float | None = None) -> sqlite3.Row | None:
        """The slot a rater works on next, a row (lease, item, first, instruction, a, b, ...).

        What the rater holds already comes again, otherwise the item with the fewest slots taken;
        None where nothing is open.
        """
        now = now or time.time()
        with self.transaction() as c:
            held = c.execute(
                "select * from slots join items on items.id = item "
                "where rater = ? and choice is null",
                (rater,),
            ).fetchone()
            if held:
                c.execute(
                    "update slots set until = ? where lease = ?",
                    (now + self.lease_s, held["lease"]),
                )
                return held
            item, place = self._gold(c, rater) or self._least_rated(c, rater, now) or (None, None)
            if item is None:
                return None
            c.execute(
                "delete from slots where item = ? and place = ? and choice is null", (item, place)
            )  # a lease that ran out
            lease, first = secrets.token_urlsafe(12), secrets.choice("ab")
            c.execute(
                "insert into slots values (?, ?, ?, ?, ?, ?, ?, null, null)",
                (lease, item, place, rater, first, now, now + self.lease_s),
            )
            return c.execute(
                "select * from slots join items on items.id = item where lease = ?", (lease,)
            ).fetchone()

    def _gold(self, c, rater):
        """One gold item in every `gold_every` items a rater sees, at a place drawn for each such
        stretch.
        """
        seen = c.execute("select count(*) from slots where rater = ?", (rater,)).fetchone()[0]
        if seen % self.gold_every != random.Random(
            f"{self.meta['fingerprint']} {rater} {seen // self.gold_every}"
        ).randrange(self.gold_every):
            return None
        free = c.execute(
            "select id from items where gold is not null "
            "and id not in (select item from slots where rater = ?) order by random() limit 1",
            (rater,),
        ).fetchone()
        return free and (
            free["id"],
            c.execute(
                "select coalesce(max(place), -1) + 1 from slots where item = ?", (free["id"],)
            ).fetchone()[0],
        )

    def _least_rated(self, c, rater, now):
        best = c.execute(
            "select id, count(lease) as busy from items "
            "left join slots on item = id and (choice is not null or until > ?) "
            "where gold is null and id not in (select item from slots where rater = ?) "
            "group by id having busy < ? order by busy, random() limit 1",
            (now, rater, self.per_item),
        ).fetchone()
        if best is None:
            return None
        busy = {
            r["place"]
            for r in c.execute(
                "select place from slots where item = ? and (choice is not null or until > ?)",
                (best["id"], now),
            )
        }
        return best["id"], next(p for p in range(self.per_item) if p not in busy)

    def hold(self, rater: str, lease: str, now: float | None = None) -> bool:
        """Lengthen a lease; whether it was still there."""
        with self.transaction() as c:
            return (
                c.execute(
                    "update slots set until = ? where lease = ? and rater = ? and choice is null",
                    ((now or time.time()) + self.lease_s, lease, rater),
                ).rowcount
                == 1
            )

    def leave(self, rater: str, lease: str) -> bool:
        """Give a slot back without a vote; whether there was one."""
        with self.transaction() as c:
            return (
                c.execute(
                    "delete from slots where lease = ? and rater = ? and choice is null",
                    (lease, rater),
                ).rowcount
                == 1
            )

    def vote(self, rater: str, lease: str, side: str, now: float | None = None) -> bool:
        """Fill a slot: side "first", "second" (as shown) or "equal".

        True once it is on disk, and again for the same vote again; False where the slot is gone or
        holds another vote.
        """
        with self.transaction() as c:
            slot = c.execute(
                "select * from slots where lease = ? and rater = ?", (lease, rater)
            ).fetchone()
            if slot is None:
                return False
            choice = {
                "first": slot["first"],
                "second": "ab".replace(slot["first"], ""),
                "equal": "tie",
            }[side]
            if slot["choice"] is None:
                c.execute(
                    "update slots set choice = ?, voted = ? where lease = ?",
                    (choice, now or time.time(), lease),
                )
        return slot["choice"] in (None, choice)

    def add(self, votes: list[Compared]) -> bool:
        """Keep the votes of one question of a talk: all or none, on disk when this returns.

        True for the same votes again; False where one of them was cast before, in another way.
        """
        with self.transaction() as c:
            rows = c.execute("select lease, choice from slots where choice is not null")
            known = {row["lease"]: row["choice"] for row in rows}
            if any(known.get(v.lease, v.choice) != v.choice for v in votes):
                return False
            for v in votes:
                if v.lease in known:
                    continue
                item, now = secrets.token_hex(8), time.time()
                a, b = v.answers["a"], v.answers["b"]
                c.execute(
                    "insert into items values (?, ?, ?, ?, ?, null)",
                    (item, v.lease, v.question, a, b),
                )
                c.execute(
                    "insert into slots values (?, ?, 0, ?, ?, ?, ?, ?, ?)",
                    (v.lease, item, v.rater, v.first, now - v.seconds, now, v.choice, now),
                )
                c.execute(
                    "insert into talks values (?, ?, ?, ?)",
                    (item, v.models["a"], v.models["b"], json.dumps(v.settings)),
                )
        return True

    # --- counts ---

    def progress(self, rater: str | None = None, now: float | None = None) -> dict:
        """{"votes", "wanted", "raters"} of ordinary items, and of a rater "mine" (gold ones too)
        and "open" (items still open to that rater).
        """
        with self.transaction() as c:
            items = c.execute("select count(*) from items where gold is null").fetchone()[0]
            votes, raters = c.execute(
                "select count(*), count(distinct rater) from slots join items on items.id = item "
                "where choice is not null and gold is null"
            ).fetchone()
            counts = {"votes": votes, "wanted": items * self.per_item, "raters": raters}
            if rater is not None:
                counts["mine"] = c.execute(
                    "select count(*) from slots where rater = ? and choice is not null", (rater,)
                ).fetchone()[0]
                counts["open"] = c.execute(
                    "select count(*) from items where gold is null and id not in "
                    "(select item from slots where rater = ? and choice is not null) and "
                    "(select count(*) from slots where item = items.id and choice is not null) < ?",
                    (rater, self.per_item),
                ).fetchone()[0]
        return counts

    def votes(self) -> list:
        """Every vote as a dict: item, source, instruction, a, b, gold, rater, first, choice,
        seconds, voted, models {"a", "b"}; in the order they came.
        """
        with self.transaction() as c:
            rows = c.execute(
                "select slots.item, source, instruction, items.a, items.b, gold, rater, first, "
                "choice, voted - taken as seconds, voted, "
                "talks.a as model_a, talks.b as model_b "
                "from slots join items on items.id = slots.item "
                "left join talks on talks.item = slots.item "
                "where choice is not null order by voted, lease"
            ).fetchall()
        votes = []
        for row in map(dict, rows):
            of_talk = {"a": row.pop("model_a"), "b": row.pop("model_b")}
            votes.append(row | {"models": of_talk if of_talk["a"] is not None else self.names})
        return votes


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def fingerprint(items: list[dict], per_item: int) -> str:
    """sha256 of what is rated: the same for the same items in the same order."""
    return hashlib.sha256(
        json.dumps(
            [[str(i["id"]), i["instruction"], i["a"], i["b"], i.get("gold")] for i in items]
            + [per_item]
        ).encode()
    ).hexdigest()
