"""What a server counts, in Prometheus' text format.

For /metrics; nothing to run. Labels are the models' names and the server's own addresses, so that
no client can make them many. Left out: a library's registry, push gateways.
"""

import bisect
import collections
import threading
from collections.abc import Iterable

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[tuple[str, str], ...]


def escaped(value: str) -> str:
    """A label's value between its quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def sample(name: str, labels: Labels, value: float) -> str:
    """One line."""
    inside = ",".join(f'{key}="{escaped(v)}"' for key, v in labels)
    return f"{name}{{{inside}}} {value!r}" if labels else f"{name} {value!r}"


class Metrics:
    """Counters and the histogram of seconds to the first token; safe among threads."""

    def __init__(self, models: Iterable[str]):
        self.lock = threading.Lock()
        self.requests: collections.Counter = collections.Counter()  # of Labels
        self.tokens: collections.Counter = collections.Counter()
        self.first = {name: [0] * (len(BUCKETS) + 1) for name in models}
        self.first_sum = dict.fromkeys(self.first, 0.0)

    def request(self, path: str, status: int) -> None:
        """A request was answered."""
        with self.lock:
            self.requests[("path", path), ("status", str(status))] += 1

    def used(self, model: str, prompt: int, new: int) -> None:
        """Tokens of one answer."""
        with self.lock:
            self.tokens[("kind", "prompt"), ("model", model)] += prompt
            self.tokens[("kind", "completion"), ("model", model)] += new

    def first_token(self, model: str, seconds: float) -> None:
        """How long a client waited for a sample's first token."""
        with self.lock:
            self.first[model][bisect.bisect_left(BUCKETS, seconds)] += 1
            self.first_sum[model] += seconds

    def text(self, gauges: dict[str, tuple[str, str, float]]) -> str:
        """The page. gauges: name -> (type, help, value), of what is counted elsewhere."""
        lines = []

        def family(name, kind, said):
            lines.extend((f"# HELP {name} {said}", f"# TYPE {name} {kind}"))

        with self.lock:
            family("mynah_requests_total", "counter", "Requests answered.")
            lines += [sample("mynah_requests_total", k, v) for k, v in self.requests.items()]
            family("mynah_tokens_total", "counter", "Tokens of answered requests.")
            lines += [sample("mynah_tokens_total", k, v) for k, v in self.tokens.items()]
            name = "mynah_first_token_seconds"
            family(name, "histogram", "From a request's arrival to its first token.")
            for model, counts in self.first.items():
                label, total = ("model", model), 0
                for bound, count in zip((*map(repr, BUCKETS), "+Inf"), counts, strict=True):
                    total += count
                    lines.append(sample(f"{name}_bucket", (label, ("le", bound)), total))
                lines.append(sample(f"{name}_sum", (label,), self.first_sum[model]))
                lines.append(sample(f"{name}_count", (label,), total))
        for name, (kind, said, value) in gauges.items():
            family(name, kind, said)
            lines.append(sample(name, (), value))
        return "\n".join(lines) + "\n"
