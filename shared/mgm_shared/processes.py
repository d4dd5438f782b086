"""Which process this is, told so that another one can find out whether it still runs, also from another machine."""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """A process of some machine.

    `machine` differs between machines, between boots of one, and between containers that number their processes
    apart. `start` tells a process from a later one of the same number; it is empty where the system does not tell.
    """

    host: str
    machine: str
    pid: int
    start: str

    @classmethod
    def own(cls) -> "ProcessId":
        """This process."""
        return cls(host=socket.gethostname(), machine=_machine(), pid=os.getpid(), start=_start(os.getpid()))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_local(self) -> bool:
        """Whether it is a process of this machine and container, about which `has_ended` knows."""
        return self.machine == _machine()

    def has_ended(self) -> bool:
        """Whether it is known to have ended; of another machine's processes nothing is known."""
        if not self.is_local:
            return False
        with suppress(PermissionError):
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
        # A zombie has ended, although its parent has not asked for its exit code.
        return bool(self.start) and _start(self.pid) != self.start


def _machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty for a zombie, and where there is no /proc."""
    try:
        # The name of the program, in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
