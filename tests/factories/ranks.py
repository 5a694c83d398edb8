"""Groups of processes that torch.distributed connects, forked from one process that has imported torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# The import takes seconds, the fork none: every rank of every group begins with torch there.
LAUNCHER = """
import importlib, json, os, sys
import satclip_engine.contrast

def fork(group, rank, out):
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(out, os.O_CREAT | os.O_WRONLY), 1)
    sys.argv = ["-c", group["store"], str(rank), *group["arguments"]]
    exec(compile(code, "<rank>", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
    os._exit(0)

code, groups = sys.argv[1], json.loads(sys.argv[2])
for name in sys.argv[3:]:
    importlib.import_module(name)
for group in groups:
    children = [fork(group, rank, f"{group['store']}.{rank}") for rank in range(group["count"])]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        sys.exit(f"{group}: {statuses}")
"""


@dataclass(frozen=True)
class Group:
    """File in which its processes meet, their number, and what each is given after the file and its rank."""

    store: str
    count: int
    arguments: Sequence[str] = ()

    def printed(self) -> list[str]:
        """Output of each process."""
        return [Path(f"{self.store}.{rank}").read_text() for rank in range(self.count)]


def run_ranks(code: str, *groups: Group, imports: Sequence[str] = ()) -> None:
    """Run the code in the processes of one group after the other; `imports` are there before they fork."""
    described = json.dumps([asdict(group) for group in groups])
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, textwrap.dedent(code), described, *imports],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
