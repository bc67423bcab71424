"""What SEG, SR and the 3-D page add to a prediction: processor seconds and memory; a CT is painted around a mask.

python -m tests.benchmarks.dicom_cost --masks ../shared/kits23/masks --case case_00011
"""

import argparse
import resource
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kits_cascade.inference.measure import measure_lesions, volumes_ml
from kits_cascade.report.viewer import write_view
from kits_cascade.runs.dicom_results import write_dicom
from kits_cascade.volumes.cases import load_case
from kits_cascade.volumes.dicom_sr import Findings
from kits_cascade.volumes.find import find_inputs
from kits_cascade.volumes.nifti import read_volume
from tests.inference.oracle import HU
from tests.volumes.painted_series import write_ct


def peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def row(what):
    """A line of the table: what it costs to write the files that are put into the list."""
    paths = []
    before, started, processor = peak_gib(), time.perf_counter(), time.process_time()
    yield paths
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    sizes = ", ".join(f"{path.stat().st_size / 1e6:.2f}" for path in paths)
    print(f"| {what} | {seconds:.1f} | {processor:.1f} | {before:.2f}, {peak_gib():.2f} | {sizes} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--case", default="case_00011")
    given = parser.parse_args()
    mask = read_volume(given.masks / given.case / "segmentation.nii.gz")
    with tempfile.TemporaryDirectory() as folder:
        # Canonical axes run to the right and to the front, DICOM's to the left and to the back.
        array = HU[mask.array.astype(np.uint8)[:, ::-1, ::-1]]
        series = write_ct(Path(folder) / "series", array, spacing=mask.spacing)
        del array, mask
        volume = load_case(find_inputs(series)[0]).volume
        labels = np.zeros(volume.shape, np.uint8)
        for label in (1, 2, 3):
            labels[volume.array == HU[label]] = label
        lesions = measure_lesions(labels, volume.array, volume.spacing, volume.affine)
        findings = Findings(lesions, volumes_ml(labels, volume.spacing))
        out = Path(folder) / "out"
        print(f"{len(labels)} slices, processor time, libraries loaded as they are needed")
        print("| | seconds | processor seconds | peak RSS before, after (GiB) | MB |")
        print("|---|---|---|---|---|")
        with row("SEG, SR") as paths:
            paths.extend(write_dicom(out, series, volume, labels, findings, "0" * 16, ("seg", "sr")))
        with row("3-D page") as paths:
            paths.append(write_view(out / "view.html", given.case, volume, volume.with_array(labels)))


if __name__ == "__main__":
    main()
