"""How Ctrl-C and SIGTERM end a run: at once while nothing is lost, else after the step under way.

For train.py; nothing to run. Compiling and loading run outside of Python, where a handler written
in Python has to wait. So a thread reads the signals, and ends the process where the main thread
does not answer in time.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from host import terminal

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 0.7  # seconds that Python code has to clean up after KeyboardInterrupt
AGAIN = 1.0  # seconds after which a second Ctrl-C leaves at once


class Stop:
    """What the user asked for by signals. number: the first signal, or None."""

    def __init__(self):
        self.number: int | None = None
        self._at_once = True
        self._since = 0.0
        self._raised = False
        self._answered = threading.Event()

    def after_step(self) -> None:
        """From now on a signal asks the loop to stop after the step under way."""
        self._at_once = False

    def at_once(self) -> None:
        """From now on a signal ends the process: there is nothing more to lose."""
        self._at_once = True

    def _handle(self, number, _):
        """Runs in the main thread, as soon as that is in Python. Only the first signal raises."""
        self.number = self.number or number
        if self._at_once and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _read(self, number):
        """Runs in the thread, as soon as the signal comes."""
        first = not self._since
        if first:
            self.number, self._since = self.number or number, time.monotonic()
        if self._at_once:
            if not self._answered.wait(PATIENCE):
                self._leave("interrupted")
        elif first:
            terminal.say("\ntrain.py: stopping after this step; Ctrl-C again leaves at once")
        elif number == signal.SIGINT and time.monotonic() - self._since > AGAIN:
            self._leave("left at once: the same command goes on after the last checkpoint")

    def _leave(self, why):
        terminal.say(f"train.py: {why}")
        sys.stdout.flush()
        os._exit(128 + (self.number or signal.SIGINT))


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """Within the block signals go to the Stop; in a thread other than the main one none do."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_listen, args=(reader, stop), daemon=True)
    thread.start()
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old = {number: signal.signal(number, stop._handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        stop._answered.set()
        for number, handler in old.items():
            # whoever was interrupted is leaving: the next signal is not to interrupt that
            signal.signal(number, handler if stop.number is None else signal.SIG_IGN)
        signal.set_wakeup_fd(old_fd)
        os.close(writer)
        thread.join()
        os.close(reader)


def leave(status: int, alone: bool) -> NoReturn:
    """End the program. After a refusal or an interruption not even threads are waited for.

    One of Orbax whose write failed may wait for ever, and others complain of what they find closed.
    alone: of several processes that stop together each parts from the others first, at Python's
    own end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 2 or (status and alone):
        os._exit(status)
    sys.exit(status)


def _listen(reader, stop):
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number in SIGNALS:
                stop._read(number)
