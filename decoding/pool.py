"""A Batch for serving: rows of the cache are kept and shared, and the cache grows as it is needed.

What a slot's row holds stays there when its sample is done, until another takes the slot. A prompt
that begins like any row, busy or not, begins with a copy of it: the slots themselves are the cache
of prefixes, of no size of its own. So a system prompt is read once, and a conversation goes on
where it was. Prompts that wait together and share a beginning follow the first of them.

A long prompt is read by pieces of ROW tokens, between which the others say something. The cache is
as long and as wide as those in it need: a short request does not pay for all positions, a single
one not for all slots. slots * positions never exceed what was planned (`capacity`): where many grow
long the last comers wait, and are read again. LETTERS as in cache.py.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from decoding.batch import ROW, Batch, Prefix, Score, Slot, rows_of_prompts, scores_of
from decoding.cache import BLOCK
from decoding.decoder import WORTH, Decoder
from decoding.records import shared_length
from text.tokenizer import Tokenizer

SHORT = 128  # positions of a row, at first: a step reads all of them
NARROW = 8  # slots, at first
WIDTHS = (64, 128, 256, ROW)  # tokens a row that is read
LOOKAHEAD = 64  # waiting samples that one read chooses from
PATIENCE = 32  # looks after which a cache that is larger than needed shrinks
LOOSE = 16  # tokens that a prompt reads again to join the others' read


@dataclasses.dataclass
class Row:
    """What a slot of the cache holds, whether a sample is in it or not."""

    ids: list = dataclasses.field(default_factory=list)  # from position 0
    scores: list[Score] = dataclasses.field(default_factory=list)  # of ids[1:], as far as asked
    top: int = 0  # of these
    used: int = 0  # the last read or look that used it

    def usable(self, slot: Slot) -> int:
        """How many tokens of a waiting sample's text need not be read behind this row's."""
        text = slot.text_ids
        shared = min(shared_length(self.ids, text), len(text) - 1)
        if not slot.unscored:
            return shared
        # the last shared place says something else here
        return max(min(shared - 1, len(self.scores)), 0) if self.top >= slot.sample.top else 0


class Member(NamedTuple):
    """One sample of a read: the slot it gets, its tokens behind the prefix, where they begin."""

    slot: Slot
    b: int
    start: int
    part: list


def key_of(slot: Slot) -> int:
    """What samples have in common whose text is read once, because it is one and the same."""
    return id(slot) if slot.ids else id(slot.sample.prompt)


class Counter:
    """What a Pool has done, for whoever watches."""

    def __init__(self):
        self.prompt = self.cached = self.new = self.steps = self.preempted = 0


def shapes(batch: int, data: int, positions: int) -> tuple[list[int], list[int]]:
    """(numbers of slots, lengths in positions) that a Pool's cache takes, ascending."""
    most = -(-batch // data) * data
    sizes = [s for k in range(20) if (s := -(-NARROW * 2**k // data) * data) < most] + [most]
    longest = -(-positions // BLOCK) * BLOCK
    lengths = [n for k in range(20) if (n := SHORT << k) < longest] + [longest]
    return sizes, lengths


class Pool(Batch):
    """Slots that serve whoever comes. capacity: slots times positions, at most."""

    def __init__(self, decoder: Decoder, weights: dict, tok: Tokenizer, batch: int, capacity: int):
        self.sizes, self.lengths = shapes(batch, decoder.data, decoder.config.P)
        nothing = Prefix(decoder.prefixes.empty(BLOCK), 0)
        length = self.lengths[0]
        self.decoder, self.capacity, self.length, self.holding = decoder, capacity, length, False
        super().__init__(decoder, weights, self._size(1, length), length, nothing, tok)
        self.rows = [Row() for _ in self.slots]
        self.readers: list[int] = []  # slots whose prompt is read by pieces
        self.unread = decoder.empty(decoder.data, WIDTHS[0])
        self.clock = self.too_large = 0
        self.counter = Counter()
        self.read_on_next = False

    # --- the shape of the cache ---

    def _size(self, wanted: int, length: int) -> int:
        """Slots of a cache of `length` positions in which `wanted` samples are, as far as fits."""
        most = next((s for s in self.sizes if s >= wanted), self.sizes[-1])
        return min(most, self._most(length))

    @property
    def longest(self) -> int:
        """Positions that one sample may have."""
        fitting = (n for n in self.lengths if self._most(n))
        return min(max(fitting), self.decoder.config.P)

    def _most(self, length: int) -> int:
        """Slots that the planned memory has for rows of `length` positions."""
        return self.capacity // length // self.decoder.data * self.decoder.data

    def fit(self, waiting: list[Slot], steps: int) -> list[Slot]:
        """Bring the cache into the shape that those in it, and the next of those that wait, need.

        steps: tokens that each is about to say. Returns the samples that had to leave, first comers
        first; they wait again. Whoever waits for more room than those inside leave is let in before
        all others, when some of these are done.
        """
        inside = [slot for slot in self.slots if slot]
        ends = [min(s.length + steps, len(s.sample.prompt) + s.sample.room) for s in inside]
        length = self._class_of(max(ends, default=1))
        self.holding = False
        if waiting:
            longer = max(self._class_of(waiting[0].length + 1), length)
            self.holding = longer > self.length and self._most(longer) <= len(inside)
            length = length if self.holding else longer
        size = self._size(len(inside) + len(waiting), length)
        left = []
        if length > self.length or size > len(self.slots):
            # nothing shrinks on this occasion, unless it must
            if self._most(max(length, self.length)) >= size:
                length = max(length, self.length)
            size = min(max(size, len(self.slots)), self._most(length))
            left = self._make_room(size)
        elif length < self.length or size < len(self.slots):
            self.too_large += 1
            if self.too_large <= PATIENCE or self._crowd() > size // self.decoder.data:
                return []
        else:
            self.too_large = 0
            return []
        self.too_large = 0
        self._reshape(size, length)
        return left

    def _class_of(self, length: int) -> int:
        return next(n for n in self.lengths if n >= length)

    def _crowd(self) -> int:
        """The most samples on one rank."""
        return max(
            sum(map(bool, part)) for part in np.array_split(self._taken(), self.decoder.data)
        )

    def _taken(self):
        return np.array([slot is not None for slot in self.slots])

    def _make_room(self, size: int) -> list[Slot]:
        """Take out the last comers of each rank that are too many for `size` slots."""
        data, left = self.decoder.data, []
        per_rank = len(self.slots) // data
        for rank in range(data):
            inside = [b for b in range(rank * per_rank, (rank + 1) * per_rank) if self.slots[b]]
            inside.sort(key=lambda b: self.slots[b].admitted)
            for b in inside[size // data :]:
                left.append(self.slots[b])
                self.release(b)
        self.counter.preempted += len(left)
        return sorted(left, key=lambda slot: slot.admitted)

    def _reshape(self, size: int, length: int) -> None:
        """Another number of slots, of other lengths: samples stay, then the rows last used."""
        data = self.decoder.data
        before, after = len(self.slots) // data, size // data
        source, kept = np.zeros(size, np.int32), []
        for rank in range(data):
            order = sorted(
                range(rank * before, (rank + 1) * before),
                key=lambda b: (self.slots[b] is None, -self.rows[b].used),
            )[:after]
            source[rank * after : rank * after + len(order)] = np.array(order) - rank * before
            kept += order + [None] * (after - len(order))
        new_of = {b: at for at, b in enumerate(kept) if b is not None}
        self.readers = [new_of[b] for b in self.readers]
        self.slots = [None if b is None else self.slots[b] for b in kept]
        self.rows = [Row() if b is None else self.rows[b] for b in kept]
        for row in self.rows:
            del row.ids[length:], row.scores[length:]
        index = np.array([0 if b is None else b for b in kept])
        self.state = {name: values[index] for name, values in self.state.items()}
        self.state["live"] &= self._taken()
        for i, layer in enumerate(self.kv):  # a layer at a time: no second cache
            self.kv[i] = tuple(self.decoder.resize(a, source, length=length) for a in layer)
        self.length = length

    # --- reading ---

    def release(self, b: int) -> None:
        super().release(b)
        if b in self.readers:
            self.readers.remove(b)

    def admit(self, waiting: list[Slot]) -> list[Slot]:
        """Read for the first that wait, one row a rank at most -> those that got a slot.

        They have their prompt's scores, or are read on at the next calls.
        """
        if self.readers and (self.read_on_next or not waiting or not self.free):
            self.read_on_next = False
            self._read_on()
            return []
        self.read_on_next = bool(self.readers)
        source, length, members = self._choose([] if self.holding else waiting)
        if members:
            self._read(source, length, members)
        elif self.readers:
            self._read_on()
        return [member.slot for member in members]

    def _best(self, slot: Slot) -> tuple[int | None, int]:
        """(the row that a waiting sample shares most with, how many tokens); None: not worth it."""
        shared, b = max((row.usable(slot), b) for b, row in enumerate(self.rows))
        return (b, shared) if shared >= WORTH else (None, 0)

    def _later(self, slot: Slot, known: int, others: list[Slot]) -> bool:
        """Whether another's reading will leave more for this sample than is known now."""
        texts = [
            other.text_ids for other in others if other.sample.prompt is not slot.sample.prompt
        ]
        return any(shared_length(slot.text_ids, text) - known >= WORTH for text in texts)

    def _choose(self, waiting: list[Slot]) -> tuple[int | None, int, list[Member]]:
        """(row of the prefix, its length, samples) of the next read."""
        data, members = self.decoder.data, []
        source, length, least = None, 0, 0
        used, places = [0] * data, {}  # tokens of each rank's row; where a prompt begins in it
        reading = [self.slots[b] for b in self.readers]
        for slot in waiting[:LOOKAHEAD]:
            free = [b for b, there in enumerate(self.slots) if there is None]
            free = [b for b in free if all(b != m.b for m in members)]
            if not free or (members and len(members[0].part) > ROW):
                break
            own, shared = self._best(slot)
            if slot.length >= self.length or self._following(slot, shared, reading):
                continue
            if not members:
                source, length, least = own, shared, max(shared - LOOSE, 0)
            mine = self.rows[source].usable(slot) if source is not None else 0
            if mine < least or shared - max(mine, least) >= WORTH:
                continue
            if self._later(slot, length, [m.slot for m in members]):
                continue
            rest = slot.length - 1 - least
            b = self._place_of(slot, free, source, (used, places, rest, bool(members)))
            if b is None:
                continue
            rank = b // (len(self.slots) // data)
            key = rank, key_of(slot)
            if key not in places:
                places[key] = used[rank]
                used[rank] += rest
            length = min(length, mine)
            members.append(Member(slot, b, 0, slot.text_ids[least:-1]))
        return source, length, members

    def _following(self, slot: Slot, shared: int, reading: list[Slot]) -> bool:
        """Whether a prompt that is being read by pieces leaves more for this sample."""
        return any(
            min(shared_length(slot.text_ids, r.text_ids), slot.length - 1) - shared >= WORTH
            for r in reading
        )

    def _place_of(self, slot, free, source, room):
        """The slot for a sample, or None where no rank's row has room for it."""
        used, places, rest, others = room
        per_rank = len(self.slots) // self.decoder.data

        def fits(rank):
            return (
                (rank, key_of(slot)) in places
                or used[rank] + rest <= ROW
                or not (others or used[rank])
            )

        free = [b for b in free if fits(b // per_rank)]
        if source in free and len(self.rows[source].ids) <= self.rows[source].usable(slot):
            return source  # it goes on where it was
        # the rank with the least to read, then the row that was not used for longest
        return min(
            free, key=lambda b: (used[b // per_rank], b == source, self.rows[b].used), default=None
        )

    def _read(self, source: int | None, length: int, members: list[Member]) -> None:
        """Read the members' texts behind `length` tokens of a row, into their slots."""
        data, per_rank = self.decoder.data, len(self.slots) // self.decoder.data
        rows, following = [[] for _ in range(data)], [[] for _ in range(data)]
        copies = {name: np.zeros((data, per_rank), np.int32) for name in ("slot", "start")}
        copies["count"], starts, placed = np.zeros(data, np.int32), {}, []
        for member in members:
            slot, rank = member.slot, member.b // per_rank
            text = slot.text_ids
            part = text[length:-1][:ROW]
            key = rank, key_of(slot)
            if key not in starts:
                starts[key] = sum(map(len, rows[rank]))
                rows[rank].append(part)
                following[rank].append(text[length + 1 :][:ROW])
            m = copies["count"][rank]
            copies["slot"][rank, m], copies["start"][rank, m] = member.b % per_rank, starts[key]
            copies["count"][rank] += 1
            placed.append(member._replace(start=starts[key], part=part))
        top = max(m.slot.sample.top if m.slot.unscored else 0 for m in placed)
        prefix = self.prefix.arrays
        if source is not None and length:
            prefix = self.decoder.fetch(self.kv, np.int32(source))
        before = self.rows[source] if source is not None else Row()
        before = Row(before.ids[:length], before.scores[:length], before.top)
        new, scores = self.unread, ()
        if any(map(any, rows)):
            token = rows_of_prompts(rows, length, WIDTHS)
            if top:
                token["next"] = rows_of_prompts(following, length, WIDTHS)["ids"]
            new, scores = self.decoder.read(
                self.weights, token, prefix, np.int32(length), self.unused, top=top
            )
        self.kv = self.decoder.place(self.kv, new, prefix, np.int32(length), copies)
        scores = tuple(map(np.asarray, scores))
        self.clock += 1
        for member in placed:
            self._settle(member, before, scores, top)

    def _settle(self, member: Member, before: Row, scores: tuple, top: int) -> None:
        """Note what a slot's row holds after a read, and let its sample live if that is all."""
        slot, b, start, part = member
        row = Row(before.ids + part, list(before.scores), before.top if before.scores else top)
        if scores and part and len(before.scores) == len(before.ids):
            rank = b // (len(self.slots) // self.decoder.data)
            here = slice(start, start + len(part))
            row.scores += scores_of(*(a[rank, here] for a in scores))
            row.top = min(row.top, top)
        row.used, self.rows[b] = self.clock, row
        if slot.admitted is None or self.slots[b] is not slot:
            slot.admitted = slot.admitted or self.clock
            self.occupy(b, slot)
            if slot.cached is None:
                slot.cached = len(before.ids)
                self.counter.prompt += len(slot.sample.prompt)
                self.counter.cached += slot.cached
        whole = len(row.ids) == slot.length - 1
        if b in self.readers and whole:
            self.readers.remove(b)
        elif b not in self.readers and not whole:
            self.readers.append(b)
        self.state["live"][b] = whole and slot.sample.room > 0
        if whole and slot.unscored:
            slot.prompt_scores = row.scores[: len(slot.sample.prompt) - 1]

    def _read_on(self) -> None:
        """The next piece of the prompt that has been read by pieces for longest."""
        b = self.readers[0]
        self._read(b, len(self.rows[b].ids), [Member(self.slots[b], b, 0, [])])

    # --- saying ---

    def say_on(self, limit: int) -> Iterator[tuple[Slot, str | None]]:
        """Up to `limit` tokens for every live slot -> (slot, why it ends or None) of each."""
        live = np.flatnonzero(self.state["live"])
        if not live.size:
            return
        # a row that is full grows before the next look
        room = [self.length - self.slots[b].length + 1 for b in live]
        left = self.state["left"][live].tolist()
        limit = min([limit, *(max(r, 1) for r, n in zip(room, left, strict=True) if n > r)])
        news = self.run(limit, len(self.slots))
        self.clock += 1
        self.counter.steps += int((news.ids >= 0).any(axis=0).sum())
        for b in live.tolist():
            slot, row = self.slots[b], self.rows[b]
            said = len(slot.ids)
            reason = slot.take(news, b, self.decoder.config.P)
            self.counter.new += len(slot.ids) - said
            # the last token's keys and values are not there yet
            row.ids += slot.text_ids[len(row.ids) : -1]
            row.used = self.clock
            self.go_on(b)
            if reason:
                self.release(b)
            yield slot, reason
