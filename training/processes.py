"""Several processes of one run: what they have to agree on before the first step.

For train.py; nothing to run. JAX ends a process with a page of addresses where another one does
not come, so they find one another here first. Left out: TPU pods and SLURM, which start them all.
"""

import contextlib
import hashlib
import socket
import time
from typing import Any

import jax
import numpy as np

import sharding
from host import files, terminal

WAIT, EVERY = 300.0, 15.0  # seconds for all processes to come; between two words of who is missing

OWN = ("process", "coordinator", "verbose")  # flags in which processes of one run may differ


def gather(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Return when all processes have come to process 0. ValueError that says who has not."""
    if coordinator is None or coordinator == "auto":
        return
    sharding.check_process(coordinator, processes, process)
    assert processes is not None and process is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator {coordinator} is not HOST:PORT: use e.g. node0:1234")
    if process == 0:
        call_roll(int(port), processes)
    else:
        report(host, int(port), process)


def call_roll(port: int, processes: int) -> None:
    """Process 0: wait for the number of each other one, then let all of them go."""
    missing, here = set(range(1, processes)), []
    end, said = time.monotonic() + WAIT, time.monotonic()
    with contextlib.ExitStack() as opened:
        try:
            server = opened.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise ValueError(f"--coordinator: port {port}: {error.strerror}: use another") from None
        server.settimeout(0.5)
        while missing:
            names = ", ".join(map(str, sorted(missing)))
            if time.monotonic() > end:
                raise ValueError(
                    f"process {names} of {processes} did not come to port {port} within {WAIT:.0f} "
                    "s: start all processes, with the same --coordinator and --processes"
                )
            if time.monotonic() > said + EVERY:
                terminal.say(f"waiting for process {names} of {processes}")
                said = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                connection = opened.enter_context(server.accept()[0])
                connection.settimeout(5)
                missing.discard(int(connection.recv(16)))
                here.append(connection)
        for connection in here:
            with contextlib.suppress(OSError):
                connection.sendall(b"go")


def report(host: str, port: int, process: int) -> None:
    """Another process: say the number to process 0 and wait until all have come."""
    end, said = time.monotonic() + WAIT, time.monotonic()
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 5) as connection:
            connection.settimeout(max(end - time.monotonic(), 1))
            connection.sendall(str(process).encode())
            if connection.recv(2) == b"go":
                return
        if time.monotonic() > said + EVERY:
            terminal.say(f"process {process} waits for process 0 at {host}:{port}")
            said = time.monotonic()
        time.sleep(0.2)
    raise ValueError(
        f"process 0 did not answer at --coordinator {host}:{port} within {WAIT:.0f} s: start it, "
        "and name where it listens"
    )


def agree(record: dict[str, Any]) -> None:
    """ValueError, on every process, naming what differs between the processes' records.

    record: as run.json has it. Processes that differ would train on rows of different orders, or
    wait for one another for ever.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    values = {f"--{n.replace('_', '-')}": x for n, x in record["args"].items() if n not in OWN}
    others = ("config", "steps", "warmup", "data_fingerprint", "init_fingerprint")
    values |= {n: record[n] for n in (*others, "tokenizer_fingerprint", "versions")}
    digests = [hashlib.sha256(files.dumps(x).encode()).digest()[:8] for x in values.values()]
    mine = np.frombuffer(b"".join(digests), np.uint32).reshape(len(values), 2)
    all_processes = np.asarray(multihost_utils.process_allgather(mine))
    differs = differing(list(values), all_processes)
    if differs:
        raise ValueError(f"the processes of this run differ in {differs}: start all of them alike")


def differing(names: list[str], digests: np.ndarray) -> str:
    """What differs and where: "--seed (process 1), ..." or "". digests: [processes, names, 2]."""
    out = []
    for name, of_process in zip(names, np.moveaxis(digests, 1, 0), strict=True):
        odd = [str(i) for i, x in enumerate(of_process) if not np.array_equal(x, of_process[0])]
        if odd:
            out.append(f"{name} (process {', '.join(odd)} from process 0)")
    return ", ".join(out)
