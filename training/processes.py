"""Several processes of one run: what they have to agree on before the first step.

For train.py; nothing to run. Left out: how they find one another (sharding.py).
"""

import hashlib
from typing import Any

import jax
import numpy as np

from host import files

OWN = ("process", "coordinator", "verbose")  # flags in which processes of one run may differ


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
