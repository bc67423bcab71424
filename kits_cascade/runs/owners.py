"""Which process holds a claim, and whether it is still alive: on this machine, in a container on it, or elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kits_cascade.processor import BORN_FIELD, STATE_FIELD, process_fields


@dataclass(frozen=True)
class Owner:
    """A process. Where ``host``, ``boot`` and ``namespace`` are the same, a process number means the same."""

    host: str = ""
    boot: str = ""  # of the running system: two containers or clones may go by one host name
    namespace: str = ""  # of process numbers: each container has its own
    pid: int = 0
    born: str = ""  # process numbers are given again

    @staticmethod
    def this() -> Owner:
        """The running process."""
        return Owner(socket.gethostname(), _boot(), _namespace(), os.getpid(), _born("self"))

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Owner:
        """As written by :meth:`to_json`; what is not there is empty."""
        texts = {key: str(content.get(key, "")) for key in ("host", "boot", "namespace", "born")}
        return Owner(pid=int(content.get("pid", 0)), **texts)

    def to_json(self) -> dict[str, Any]:
        """For a claim's file."""
        return asdict(self)

    def in_sight_of(self, other: Owner) -> bool:
        """Whether the other process can tell if this one lives."""
        return (self.host, self.boot, self.namespace) == (other.host, other.boot, other.namespace)

    def lives(self) -> bool:
        """Whether the process is there; only for one that is in sight."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return _born(str(self.pid)) == self.born


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _born(process: str) -> str:
    """When a process was started; empty where unknown."""
    fields = process_fields(process)
    if not fields:
        return ""
    return "dead" if fields[STATE_FIELD] in "ZX" else fields[BORN_FIELD]
