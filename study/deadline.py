"""One request over the network as a whole within a time and a size, its headers too.

The HTTP packages bound a single read: a server that sends a byte now and then holds a client for
ever, in its headers as in its body. Here the sockets of a client count the bytes of the request
that their thread is in, and close where its time or size is over (Deadline, for httpx); or the
whole request is given a time (within, for any other). Used by endpoint.py and Perspective's client.
Left out: the request itself.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """function(), or TimeoutError after so many seconds.

    What takes longer is left behind in its thread, which ends with the program: for a client whose
    sockets cannot be reached.
    """
    results = queue.SimpleQueue()

    def work():
        try:
            results.put((function(), None))
        except BaseException as error:  # raised again below, in the thread that asked
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    if error is not None:
        raise error
    return value


class Deadline:
    """Deadline(seconds, size): of each request of a thread; `with deadline.started(): request`."""

    def __init__(self, seconds, size):
        self.seconds, self.size, self.local = seconds, size, threading.local()

    def on(self, client: Any) -> Any:
        """The httpx client, its sockets under this deadline."""
        for transport in (client._transport, *client._mounts.values()):
            pool = getattr(transport, "_pool", None)  # httpcore's; of no other use by its API
            if pool is not None:
                pool._network_backend = Backend(pool._network_backend, self)
        return client

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """A request of this thread from here on."""
        self.local.ends, self.local.left = time.monotonic() + self.seconds, 2 * self.size
        yield

    def over(self) -> bool:
        """Whether the time of this thread's request is over."""
        return time.monotonic() > self.local.ends


class Backend:
    """httpcore's network backend with a deadline on its streams."""

    def __init__(self, inner, deadline):
        self.inner, self.deadline = inner, deadline

    def connect_tcp(self, *args: Any, **kwargs: Any) -> "Stream":
        return Stream(self.inner.connect_tcp(*args, **kwargs), self.deadline)

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Stream:
    """httpcore's network stream; reading past the deadline fails as a lost connection does."""

    def __init__(self, inner, deadline):
        self.inner, self.deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        local = self.deadline.local
        left = local.ends - time.monotonic()
        if left <= 0 or local.left <= 0:
            self.inner.close()  # the read below raises the package's own error
        bound = left if timeout is None else min(timeout, left)
        part = self.inner.read(max_bytes, timeout=max(bound, 0.001))
        local.left -= len(part)
        return part

    def start_tls(self, *args: Any, **kwargs: Any) -> "Stream":
        return Stream(self.inner.start_tls(*args, **kwargs), self.deadline)

    def __getattr__(self, name):
        return getattr(self.inner, name)
