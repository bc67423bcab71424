"""What the processor is and can do, as the system tells it: without torch, which takes a second or two to ask."""

from __future__ import annotations

import os
import platform
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Final

from kits_cascade.parallel import default_jobs

_GPU_NODES: Final = ("nvidiactl", "nvmap", "nvhost-ctrl", "dxg", "kfd")  # NVIDIA, its small boards, WSL, AMD
_INFO: Final = Path("/proc/cpuinfo")


STATE_FIELD, BORN_FIELD = 0, 19  # the latter in ticks since the system was started


def process_fields(process: str) -> list[str]:
    """What the system tells of a process (a number, or ``self``), behind its name; nothing where it does not tell."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def _began() -> float:
    try:
        ticks = int(process_fields("self")[BORN_FIELD])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError, AttributeError):
        return time.time()
    return time.time() - age


# When this process was started, or the one that it was forked from, in seconds as files have them; where the system
# does not tell, a little later.
PROCESS_BEGAN: Final = _began()


@lru_cache(maxsize=1)
def _told() -> dict[str, str]:
    """The first processor's entries; none where the system is not Linux."""
    try:
        text = _INFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor_name() -> str:
    """As its maker calls it."""
    return _told().get("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str] | None:
    """Its instructions by the names that Linux gives them; None where the system does not tell."""
    flags = _told().get("flags") or _told().get("Features")
    return None if flags is None else frozenset(flags.split())


def surely_no_gpu() -> bool:
    """Whether nothing here looks like a GPU that computes."""
    return sys.platform == "linux" and not any(Path("/dev", node).exists() for node in _GPU_NODES)


def memory_bytes() -> int:
    """All of the machine's."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def threads_here() -> int:
    """With how many threads this process computes: PyTorch's number where it is loaded, which it is not for that."""
    ask = getattr(sys.modules.get("torch"), "get_num_threads", None)  # not there yet while it is being loaded
    if ask is not None:
        return int(ask())
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) > 0 else default_jobs()
