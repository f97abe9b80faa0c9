"""A function over many jobs on several processes, results in the order of the jobs.

For every other module; nothing to run. Left out: threads, and jobs that need one another.
"""

import collections
import concurrent.futures
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ordered(
    function: Callable[[Any], Any],
    jobs: Iterable,
    workers: int,
    start: Callable[..., None] | None = None,
    start_args: tuple = (),
) -> Iterator:
    """function(job) of each job, in their order, from `workers` processes; with 1, from this one.

    start(*start_args) runs once in each process before its first job. Jobs are taken as they are
    needed: at most 3 a worker and one more wait in memory. Function, jobs and results must be
    picklable. Workers end with this process, however it ends. ValueError where the system killed
    one.
    """
    if workers == 1:
        if start:
            start(*start_args)
        yield from map(function, jobs)
        return
    # Fresh processes: a fork of one in which JAX has threads may hang.
    spawn = multiprocessing.get_context("spawn")
    about = (os.getpid(), start, start_args)
    pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, _start, about)
    waiting = collections.deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError(
            "a worker process was killed (for its memory, most likely): use --workers 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(parent, start, start_args):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    # A worker whose parent was killed would wait for work for ever. The kernel's signal also ends
    # one that is deep in a single call; the thread is for other systems.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
    if alive := multiprocessing.parent_process():
        threading.Thread(target=lambda: (alive.join(), os._exit(1)), daemon=True).start()
    if start:
        start(*start_args)
