"""A talk with up to three models at once: questions, answers as they grow, votes, the way out.

What the page at / does, without HTTP and without JAX (serve/pages.py has the addresses). The server
keeps the talks, so that where names are hidden nothing the page holds or sends says which model
answered: the order is drawn anew for each question, and each model reads on in its own answers.
Left out: talks that outlive the server.
"""

import collections
import dataclasses
import itertools
import re
import secrets
import threading
import time
from collections.abc import Iterator

from decoding.records import Sampling
from serve.protocol import Limits
from serve.records import Ask, Busy, Delta, End, Failed, Serving, Ticket
from web import markdown
from web.votes import Compared, Store

MOST_MODELS = 3  # beside one another
KEPT = 32 << 20  # characters of all talks, a round counted as 4,000 more; the oldest go
LONGEST = 200_000  # characters of a question or a system text
TURN_S = 0.02  # how long one of several answers is waited for before the next is looked at
FENCE = re.compile(r"\s*(```+|~~~+)")
HIDDEN_REASON = "this answer failed; the reason is told with the names"


class Forgotten(Exception):
    """A round that is not kept any more."""


class Refused(Exception):
    """What cannot be done now, in words for the reader."""


@dataclasses.dataclass
class Answer:
    """What one model says to a question."""

    model: str
    text: str = ""
    reason: str = ""  # "" while it grows; End's or "stopped", "failed"
    note: str = ""  # what the reader should know of it
    tokens: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Round:
    """One question, its answers in the order they are shown, and what was said before."""

    id: str
    parent: str | None
    question: str
    system: str
    blind: bool
    settings: dict  # temperature, max_tokens, seed
    answers: list[Answer]
    tickets: list[Ticket | None] = dataclasses.field(default_factory=list)
    ended: float = 0.0
    told: bool = False  # whether the names were told
    choice: str | None = None

    @property
    def names(self) -> list[str] | None:
        """The models' names in the order of their answers, or None while they are hidden."""
        hidden = self.blind and not self.told
        return None if hidden else [a.model for a in self.answers]

    @property
    def size(self) -> int:
        return len(self.question) + len(self.system) + sum(len(a.text) for a in self.answers) + 4000

    def of(self, model: str) -> Answer | None:
        """This model's answer, where it gave one."""
        return next((a for a in self.answers if a.model == model and a.text.strip()), None)


class Blocks:
    """A growing Markdown text, cut behind the blocks that are finished: each is rendered once."""

    def __init__(self):
        self.rest, self.at, self.fence = "", 0, ""  # at: where the unfinished line begins

    def add(self, text: str) -> str:
        """What is finished now and was not before; `rest` is what is not."""
        self.rest += text
        cut = 0
        while (end := self.rest.find("\n", self.at)) >= 0:
            line, self.at = self.rest[self.at : end], end + 1
            mark = FENCE.match(line)
            if self.fence:
                if mark and mark[1].startswith(self.fence) and not line[mark.end() :].strip():
                    self.fence = ""
            elif mark:
                self.fence = mark[1]
            elif not line.strip():
                cut = self.at
        done, self.rest = self.rest[:cut], self.rest[cut:]
        self.at -= cut
        return done


class Stream:
    """The events of a round for the page, as dicts; `read` until `done`, `close` in any case.

    {"round", "names", "count", "notes", "seed"} first. Then of the answer at `place`: {"text"},
    more of it; {"html", "rest"}, a finished block and the text behind it; at its end {"html",
    "end", "note", "stats"}.
    """

    def __init__(self, round: Round, notes: list[str]):
        self.round, self.started = round, time.monotonic()
        self.blocks = [Blocks() for _ in round.answers]
        self.open = list(range(len(round.answers)))
        self.first: list[dict] = [
            {"round": round.id, "names": round.names, "count": len(round.answers), "notes": notes}
            | {"seed": round.settings["seed"]}
        ]
        for place, ticket in enumerate(round.tickets):
            if ticket is None:
                self.first.append(self._end(place, "failed"))

    @property
    def done(self) -> bool:
        return not self.open and not self.first

    def read(self, seconds: float) -> list[dict]:
        """What has come since; [] where nothing has within `seconds`."""
        events, self.first = self.first, []
        until = time.monotonic() + seconds
        while self.open and not events:
            wait = min(seconds, TURN_S) if len(self.open) > 1 else seconds
            for place in list(self.open):
                events += self._read(place, wait)
            if time.monotonic() >= until:
                break
        return events

    def close(self) -> None:
        """Nobody reads on: what still runs is stopped."""
        for place in list(self.open):
            self.round.tickets[place].cancel()
            self._end(place, "stopped")

    def _read(self, place, wait):
        ticket, answer = self.round.tickets[place], self.round.answers[place]
        new = ""
        for event in ticket.wait(wait):
            if isinstance(event, Delta):
                new += event.text
                answer.text += event.text
                answer.tokens += len(event.ids)
            elif isinstance(event, End):
                answer.text = event.text
                return [self._end(place, event.reason)]
            elif isinstance(event, Failed):
                answer.note = event.message
                return [self._end(place, "failed")]
        if ticket.cancelled:
            return [self._end(place, "stopped")]
        if not new:
            return []
        block = self.blocks[place].add(new)
        if block.strip():
            rest = markdown.visible(self.blocks[place].rest)
            return [{"place": place, "html": markdown.render(block), "rest": rest}]
        return [{"place": place, "text": markdown.visible(new)}]

    def _end(self, place, reason):
        answer = self.round.answers[place]
        answer.reason, answer.seconds = reason, time.monotonic() - self.started
        self.open.remove(place)
        if not self.open:
            self.round.ended = time.monotonic()
        return {"place": place, "end": reason, "html": markdown.render(answer.text)} | told(
            self.round, answer
        )


def told(round: Round, answer: Answer) -> dict:
    """What the page hears of an answer besides its text: less where names are hidden."""
    if round.names is None:
        return {"note": HIDDEN_REASON if answer.note else "", "stats": None}
    stats = {"tokens": answer.tokens, "seconds": round_off(answer.seconds), "end": answer.reason}
    return {"note": answer.note, "stats": stats}


def round_off(seconds: float) -> float:
    return float(f"{seconds:.2f}")


class Talks:
    """The talks of one server.

    votes: where they are kept, or None. limits: tokens of a prompt, seconds of an answer.
    """

    def __init__(self, engine: Serving, votes: Store | None = None, limits: Limits | None = None):
        self.engine, self.votes, self.limits = engine, votes, limits or Limits()
        self.rounds: collections.OrderedDict[str, Round] = collections.OrderedDict()
        self.lock = threading.Lock()

    def about(self) -> dict:
        """What the page asks first."""
        return {
            "models": list(self.engine.models),
            "most": MOST_MODELS,
            "votes": self.votes is not None,
        }

    # --- a question ---

    def ask(
        self,
        question: str,
        models: list[str],
        parent: str | None = None,
        system: str = "",
        blind: bool = False,
        settings: dict | None = None,
    ) -> Stream:
        """Ask up to three models a question, behind the round `parent`.

        settings: temperature, max_tokens, seed (None: one is drawn). ValueError for what cannot be
        asked; a model that cannot take it fails alone.
        """
        settings = {"temperature": 0.7, "max_tokens": 512, "seed": None} | (settings or {})
        if settings["seed"] is None:
            settings["seed"] = secrets.randbelow(2**31)
        sampling = Sampling(
            max_new=settings["max_tokens"],
            temperature=settings["temperature"],
            seed=settings["seed"],
        )
        self._check(question, models, system)
        with self.lock:
            before = self._before(parent)
        order = list(models)
        if blind:
            secrets.SystemRandom().shuffle(order)
        new = Round(
            secrets.token_hex(12),
            parent,
            question,
            system,
            blind,
            settings,
            [Answer(model) for model in order],
        )
        notes = set()
        for answer in new.answers:
            try:
                prompt, cut = self._prompt(new, before, answer.model, settings["max_tokens"])
                if cut:
                    notes.add("The beginning of this talk no longer fits and is not read.")
                ask = Ask(answer.model, [prompt], sampling, seconds=self.limits.seconds)
                new.tickets.append(self.engine.submit(ask))
            except (Busy, ValueError) as error:
                answer.note = str(error) or "the server is busy: try again in a moment"
                new.tickets.append(None)
        stream = Stream(new, sorted(notes))
        with self.lock:
            self.rounds[new.id] = new
            self._forget()
        return stream

    def _check(self, question, models, system):
        unknown = [m for m in models if m not in self.engine.models]
        if unknown:
            raise ValueError(f"no model {unknown[0]} is served: choose from the list")
        if not 1 <= len(set(models)) == len(models) <= MOST_MODELS:
            raise ValueError(f"{len(models)} models: choose 1 to {MOST_MODELS} different ones")
        if not question.strip():
            raise ValueError("the question is empty: write one")
        for name, text in (("question", question), ("system text", system)):
            if len(text) > LONGEST:
                raise ValueError(f"the {name} has {len(text)} characters: use {LONGEST} at most")

    def _before(self, parent):
        """The rounds up to `parent`, oldest first; they are the last to be forgotten."""
        chain = []
        while parent is not None:
            if parent not in self.rounds:
                raise Forgotten
            chain.append(self.rounds[parent])
            parent = chain[-1].parent
        for old in reversed(chain):
            self.rounds.move_to_end(old.id)
        return chain[::-1]

    def _prompt(self, new, before, model, max_tokens):
        """(ids, whether the beginning was left out) of what a model reads."""
        system = [{"from": "system", "value": new.system}] if new.system.strip() else []
        turns = turns_of(before, model)
        opened = self.engine.models[model]
        if opened.template is None:
            raise ValueError(
                f"{model} does not say how conversations are written: serve it with --template"
            )
        positions = opened.config.P
        most = min(self.limits.prompt_tokens or positions, positions - 1)
        room = min(most, positions - min(max_tokens, positions // 2))
        last, cut = [{"from": "human", "value": new.question}], False
        while len(ids := opened.chat_ids(system + turns + last)) > room and turns:
            turns, cut = turns[2:], True
        if len(ids) > most:
            raise ValueError(
                f"the question has {len(ids):,} tokens: {model} takes {most:,} at most"
            )
        return ids, cut

    def _forget(self):
        size = sum(r.size for r in self.rounds.values())
        for old in list(self.rounds.values())[:-1]:
            if size <= KEPT:
                break
            if old.ended:
                size -= old.size
                del self.rounds[old.id]

    def stop(self, id: str) -> None:
        """Stop the answers of a round; its stream then says so."""
        for ticket in self._round(id).tickets:
            if ticket is not None and not ticket.done:
                ticket.cancel()

    def _round(self, id):
        with self.lock:
            if id not in self.rounds:
                raise Forgotten
            return self.rounds[id]

    # --- which is better ---

    def vote(self, id: str, choice: str, rater: str) -> dict:
        """Keep which answer is better, "0" to "2" by its place or "equal"; then tell the names.

        Of three, the chosen one is better than each of the others.
        """
        round = self._round(id)
        if self.votes is None:
            raise Refused("this server keeps no votes: start it with --votes FILE")
        places = [p for p, a in enumerate(round.answers) if round.of(a.model)]
        if not round.ended or len(places) < 2:
            raise Refused("a vote needs two finished answers")
        if choice != "equal" and choice not in map(str, places):
            raise ValueError(f"choice {choice}: use equal or the place of an answer")
        if round.choice is None and round.blind and round.told:
            raise Refused("the names were told before the vote: ask again to vote blind")
        if not self.votes.add(list(self._compared(round, places, choice, rater))):
            raise Refused("this question has a vote already")
        round.choice = choice
        return self.reveal(id)

    def _compared(self, round, places, choice, rater) -> Iterator[Compared]:
        with self.lock:
            before = self._before(round.parent)
        rank = {model: n for n, model in enumerate(self.engine.models)}
        for pair in itertools.combinations(places, 2):
            if choice != "equal" and int(choice) not in pair:
                continue
            sides = sorted(pair, key=lambda p: rank[round.answers[p].model])
            a, b = (round.answers[p] for p in sides)
            better = "tie" if choice == "equal" else "ab"[sides.index(int(choice))]
            talk = {
                side: turns_of([*before, round], answer.model)
                for side, answer in (("a", a), ("b", b))
            }
            yield Compared(
                lease=f"{round.id}-{pair[0]}{pair[1]}",
                rater=rater,
                question="\n\n".join([*(r.question for r in before), round.question]),
                answers={"a": a.text, "b": b.text},
                models={"a": a.model, "b": b.model},
                first="ab"[sides.index(pair[0])],
                choice=better,
                seconds=time.monotonic() - round.ended,
                settings=round.settings
                | {"blind": round.blind, "system": round.system, "beside": len(places)}
                | {"talk": talk},
            )

    def reveal(self, id: str) -> dict:
        """The names of a round, and what is told with them."""
        round = self._round(id)
        if not round.ended:
            raise Refused("the answers are not finished")
        round.told = True
        return {"names": round.names, "answers": [told(round, a) for a in round.answers]}

    # --- the way out ---

    def export(self, id: str) -> list[dict]:
        """The talk up to this round as ShareGPT's rows, one a model.

        Answers that were cut off are context there (weight 0): an end after them would be learned.
        """
        with self.lock:
            rounds = self._before(id)
        if any(r.names is None for r in rounds):
            raise Refused("names are hidden: vote or show them first")
        models = {a.model: None for r in rounds for a in r.answers}
        rows = []
        for model in models:
            turns = turns_of(rounds, model)
            if rounds[-1].system.strip():
                turns.insert(0, {"from": "system", "value": rounds[-1].system})
            if any(t["from"] == "gpt" for t in turns):
                rows.append({"id": f"talk-{id}-{model}", "model": model, "conversations": turns})
        return rows


def turns_of(rounds: list[Round], model: str) -> list[dict]:
    """What was said between the human and one model; a question without its answer is left out."""
    turns = []
    for round in rounds:
        if answer := round.of(model):
            turns.append({"from": "human", "value": round.question})
            cut = {} if answer.reason == "stop" else {"weight": 0}
            turns.append({"from": "gpt", "value": answer.text} | cut)
    return turns
