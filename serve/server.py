"""The sockets of a server: connections, their bounds in bytes and seconds, and how it stops.

waitress reads requests and writes answers in one thread, and hands each request to another. What is
added here: answers to what it refuses itself in OpenAI's form, a bound on the seconds in which a
request must have come, and a stop that lets running requests finish.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask
from waitress.utilities import Error

from host.terminal import say
from serve.body import Refusal
from serve.flags import Bounds, Place
from web.guard import port_refused

IDLE_S = 75  # an open connection without a request; a minute is what clients keep theirs
READING_S = 60  # a client that reads nothing of what waits for it
LINGER_S = 2  # in which the rest of a refused request is read and dropped
SPARE_THREADS = 8
OVERFLOW = 64  # connections beyond the bound that are told so; more wait to be accepted


class TooSlow(Error):
    code, reason = 408, "Request Timeout"


class TooMany(Error):
    code, reason = 503, "Service Unavailable"


class Refused(ErrorTask):
    """The answer to what waitress itself refuses, in OpenAI's form."""

    def execute(self):
        error, bounds = self.request.error, self.channel.server.bounds
        message = {
            413: f"the body is larger than {bounds.body_bytes:,} bytes",
            431: f"the headers are larger than {bounds.header_bytes:,} bytes",
        }.get(error.code, str(error.body))
        refusal = Refusal(error.code, message, retry_s=2 if error.code == 503 else None)
        said = json.dumps(refusal.body()).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers += [("Content-Type", "application/json"), *refusal.headers.items()]
        self.set_close_on_finish()
        self.content_length = len(said)
        self.channel.refused = True
        self.write(said)
        say(f"refused {error.code} {message}")


class Channel(HTTPChannel):
    """A connection.

    since: when it last had nothing to do or began to send a request. refused: waitress has refused
    its last request. lingering: until when the rest of that is read and dropped, 0 before; closed
    at once, the connection would be reset and the refusal lost.
    """

    error_task_class = Refused

    def __init__(self, server, *args, **named):
        self.since, self.refused, self.lingering = time.time(), False, 0.0
        super().__init__(server, *args, **named)

    def readable(self) -> bool:
        return bool(self.lingering) or super().readable()

    def writable(self) -> bool:
        return not self.lingering and bool(super().writable())

    def handle_close(self) -> None:
        if self.refused and self.connected and not self.lingering:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
                self.lingering = time.time() + LINGER_S
                return
        super().handle_close()

    def received(self, data: bytes) -> Any:
        if self.lingering:
            return False
        if self.request is None and not self.requests:
            self.since = time.time()
        return super().received(data)

    def service(self) -> None:
        if len(self.server.active_channels) > self.server.bounds.connections:
            self.requests[0].error = TooMany("too many connections: try again in a moment")
        super().service()
        self.since = time.time()

    def overdue(self, now: float, sending_s: float) -> bool:
        """Whether the client has had its time: to send, to read on, to ask again."""
        if self.requests:
            return False
        if self.lingering:
            return now > self.lingering
        if self.total_outbufs_len:
            return now - self.last_activity > READING_S
        return now - self.since > (IDLE_S if self.request is None else sending_s)


class Server(TcpWSGIServer):
    """Server(place, bounds): the port is taken at once, `open` begins to serve."""

    channel_class = Channel

    def __init__(self, place: Place, bounds: Bounds):
        self.bounds, self.finished = bounds, False
        try:
            super().__init__(
                None,
                _start=False,
                host="127.0.0.1" if place.host == "localhost" else place.host,
                port=place.port,
                threads=bounds.connections + SPARE_THREADS,
                ident=None,
                max_request_body_size=bounds.body_bytes + 1,
                max_request_header_size=bounds.header_bytes,
                connection_limit=bounds.connections + OVERFLOW,
                channel_request_lookahead=1,  # reads on while it answers, and so sees a hang-up
                cleanup_interval=1,
                asyncore_use_poll=True,  # select() cannot watch so many
            )
        except OSError as error:
            raise port_refused(place.host, place.port, error) from None
        self.number = int(self.effective_port)

    def maintenance(self, now: float) -> None:
        """Called every second: end connections whose clients have had their time."""
        seconds = self.bounds.sending_seconds
        for channel in list(self.active_channels.values()):
            if not channel.overdue(now, seconds):
                continue
            request, channel.request = channel.request, None
            if channel.lingering:
                channel.handle_close()
            if request is None:
                channel.will_close = True
                continue
            request.error = TooSlow(f"the request did not come within {seconds:g} seconds")
            channel.requests.append(request)
            self.add_task(channel)

    def open(self, application: Any) -> None:
        """Serve from now on; `run_until_finished` does."""
        self.application = application
        self.accept_connections()

    def run_until_finished(self) -> None:
        """Read and write until `finish` is called from another thread."""
        while not self.finished:
            self.asyncore.loop(timeout=1, map=self._map, use_poll=True, count=1)
        until = time.monotonic() + 2  # what is written already goes out
        while time.monotonic() < until and any(
            c.total_outbufs_len or c.requests for c in self.active_channels.values()
        ):
            self.asyncore.loop(timeout=0.1, map=self._map, use_poll=True, count=1)

    def finish(self) -> None:
        self.finished = True
        self.pull_trigger()


def stop_on_signals(server: Server, stop: Callable[[], None]) -> None:
    """Ctrl-C and SIGTERM call `stop` in a thread and then end the server; the next Ctrl-C ends the
    process at once."""
    asked = threading.Event()

    def stopping():
        try:
            stop()
        finally:
            server.finish()

    def handle(number, frame):
        if asked.is_set():
            if number == signal.SIGINT:
                os._exit(130)
            return
        asked.set()
        threading.Thread(target=stopping, daemon=True).start()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
