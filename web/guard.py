"""Who may ask a page's server, and what its answers say to the browser; of no web framework.

The policy runs no script but the server's own files and loads no image. A request must name this
server in Host (DNS rebinding) and, if it changes something, in Origin, as JSON (forgery from other
pages). Left out: TLS (put a reverse proxy before the server), cookies, keys.
"""

import collections
import re
import threading
import time
from collections.abc import Iterable

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
GUESSES, GUESS_S = 10, 60  # wrong tokens of one address in so many seconds, then it has to wait


def port_refused(host: str, port: int, error: OSError) -> ValueError:
    """What a server says that cannot have its port, in one line."""
    return ValueError(
        f"--port {port} on {host} cannot be opened ({error.strerror}): name another --port"
    )


def is_wildcard(host: str) -> bool:
    """Whether a server on this host is reached under every address of the machine."""
    return host in ("0.0.0.0", "::", "")


def host_names(host: str, port: int | str, names: Iterable[str] = ()) -> set[str]:
    """What a Host header may say to a server on this host and port.

    names: further names under which it is opened.
    """
    own = (host,)
    if host in LOOPBACK:
        own = LOOPBACK
    elif is_wildcard(host):
        own = ()
    return {h for name in (*own, *names) for h in spellings(name.lower(), port)}


def spellings(name: str, port: int | str) -> list[str]:
    """How a browser may write this host: with the port, and without it (80, 443, a proxy's)."""
    if ":" in name and not re.search(r"^\[|^[^:]*:\d+$", name):
        name = f"[{name}]"
    return [f"{name}:{port}", name]


def refusal(
    method: str, host: str | None, origin: str | None, kind: str | None, hosts: set[str]
) -> tuple[int, str] | None:
    """(HTTP status, reason) of a request that does not come from the page itself, or None.

    host, origin: the request's headers. kind: the media type of its body, without parameters.
    """
    host = (host or "").lower()
    if host not in hosts:
        return 421, "this address is not served"
    if method == "POST":
        own = (origin or "").lower() in (f"http://{host}", f"https://{host}")
        if not own or kind != "application/json":
            return 403, "requests come from the page only"
    return None


class Guesses:
    """Wrong tokens by address: whether one more may be tried."""

    def __init__(self, most: int = GUESSES, seconds: float = GUESS_S):
        self.most, self.seconds = most, seconds
        self.times, self.lock = collections.defaultdict(collections.deque), threading.Lock()

    def allowed(self, address: str | None, now: float | None = None) -> bool:
        now = time.monotonic() if now is None else now
        with self.lock:
            times = self.times[address]
            while times and now - times[0] > self.seconds:
                times.popleft()
            if not times:
                del self.times[address]
            return len(times) < self.most

    def wrong(self, address: str | None, now: float | None = None) -> None:
        with self.lock:
            self.times[address].append(time.monotonic() if now is None else now)
