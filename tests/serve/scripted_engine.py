"""An engine whose models say what a test tells them to: serve.records.Serving without JAX.

    engine = ScriptedEngine({"base": lambda turns: ["one ", "two"]}, pause=0.01)

A model's function gets the turns it reads and gives the pieces of its answer, one a token. None
among them breaks the answer off; an exception it raises is what `submit` raises.
"""

import json
import threading
import time
import types

from serve.records import Counts, Delta, End, Failed, Ticket


class ScriptedModel:
    """What a talk needs of an opened model: a token is a byte of the turns' JSON."""

    template = "chatml"

    def __init__(self, positions):
        self.config = types.SimpleNamespace(P=positions)

    def chat_ids(self, conversation):
        plain = [{"from": t["from"], "value": t["value"]} for t in conversation]
        return list(json.dumps(plain).encode())


class ScriptedEngine:
    """`asked` has (model, turns, sampling) of each request; `running` counts answers under way."""

    def __init__(self, speak, pause=0.0, positions=100_000):
        self.models = {name: ScriptedModel(positions) for name in speak}
        self.speak, self.pause = speak, pause
        self.asked, self.running, self.finished, self.cancelled = [], 0, 0, 0
        self.lock = threading.Lock()

    def start(self):
        pass

    def submit(self, ask):
        turns = json.loads(bytes(ask.prompts[0]))
        pieces = self.speak[ask.model](turns)
        ticket = Ticket(ask)
        with self.lock:
            self.asked.append((ask.model, turns, ask.sampling))
            self.running += 1
        threading.Thread(target=self._run, args=(ticket, pieces), daemon=True).start()
        return ticket

    def stop(self, grace):
        until = time.monotonic() + grace
        while self.running and time.monotonic() < until:
            time.sleep(0.01)

    def counts(self):
        return Counts(self.running, 0, 0, 0, 0, self.finished, self.cancelled, 0, 0)

    def _run(self, ticket, pieces):
        model, most = ticket.ask.model, ticket.ask.sampling.max_new
        said, end = [], None
        for piece in pieces:
            time.sleep(self.pause)
            if ticket.cancelled:
                break
            if piece is None:
                end = Failed("error", f"the model {model} broke")
                break
            said.append(piece)
            ticket.put(Delta(0, 0, [0], piece, None))
            if len(said) == most:
                end = End(0, 0, "length", [0] * len(said), "".join(said), None, 0)
                break
        else:
            end = End(0, 0, "stop", [0] * len(said), "".join(said), None, 0)
        with self.lock:
            self.running -= 1
            self.cancelled += end is None
            self.finished += end is not None
        if end is not None:
            ticket.put(end)
