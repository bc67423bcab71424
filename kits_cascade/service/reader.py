"""The process that touches what a client has sent: started for one file, held to limits, and done with it.

python -m kits_cascade.service.reader TASK FOLDER LIMITS; what became of it stands in FOLDER/answer.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from kits_cascade.errors import CaseError, KitsCascadeError
from kits_cascade.files import read_json, write_json
from kits_cascade.service.uploads import Limits

READ, DICOM = "read", "dicom"
UPLOAD: Final = "upload"
LABELS: Final = "labels.npy"
FINDINGS: Final = "findings.json"
RESULTS: Final = "dicom"  # the folder of SEG and SR
ANSWER: Final = "answer.json"


def limit_process(limits: Limits) -> None:
    """Let the system end this process where it takes too much; where it has no such limits, time alone ends it."""
    with suppress(OSError):  # Linux: where memory is short all the same, this process goes, and not the server
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        import resource
    except ImportError:
        return
    most = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: int(limits.read_seconds) + 1,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, size in most.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (size, size))


def _read(folder: Path, limits: Limits) -> None:
    from kits_cascade.service.handover import store_case
    from kits_cascade.service.uploads import receive
    from kits_cascade.volumes.cases import load_case

    store_case(load_case(receive(folder / UPLOAD, folder, limits)), folder)


def _write_dicom(folder: Path, limits: Limits) -> None:
    """SEG and SR refer to the headers of what was sent: these too are read here."""
    import numpy as np

    from kits_cascade.inference.measure import LesionRow
    from kits_cascade.runs.dicom_results import SEG, SR, write_dicom
    from kits_cascade.service.handover import restore_case
    from kits_cascade.volumes.dicom_sr import Findings

    loaded, said = restore_case(folder, limits), read_json(folder / FINDINGS)
    findings = Findings([LesionRow(**row) for row in said["lesions"]], said["volumes_ml"], said["remarks"])
    labels = np.load(folder / LABELS, allow_pickle=False)
    write_dicom(folder / RESULTS, loaded.case.path, loaded.volume, labels, findings, "", (SEG, SR))


TASKS: Final[Mapping[str, Callable[[Path, Limits], None]]] = MappingProxyType({READ: _read, DICOM: _write_dicom})


def try_task(task: str, folder: Path, limits: Limits) -> str:
    """Do a task; why it cannot be done, in a sentence, or nothing."""
    try:
        TASKS[task](folder, limits)
    except CaseError as error:
        return error.reason
    except KitsCascadeError as error:
        return str(error).replace(f"{folder}{os.sep}", "")  # where our files lie is no client's business
    except MemoryError:
        return "it needs more memory than reading is given"
    except Exception as error:  # libraries meet in a broken file what nobody has thought of
        return f"it cannot be read ({type(error).__name__})"
    return ""


def main(arguments: list[str]) -> None:
    """Limits first: everything heavy is imported under them."""
    task, place, text = arguments
    given: dict[str, Any] = json.loads(text)
    limits, folder = Limits(**given), Path(place)
    limit_process(limits)
    write_json(folder / ANSWER, {"refused": try_task(task, folder, limits)})


if __name__ == "__main__":
    main(sys.argv[1:])
