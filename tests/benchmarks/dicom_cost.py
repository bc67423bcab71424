"""What SEG and SR add to a prediction: processor seconds and memory, of a published mask with a CT painted around it.

python -m tests.benchmarks.dicom_cost --masks ../shared/kits23/masks --case case_00011
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from kits_cascade.inference.measure import measure_lesions, volumes_ml
from kits_cascade.runs.dicom_results import write_dicom
from kits_cascade.volumes.cases import load_case
from kits_cascade.volumes.dicom_sr import Findings
from kits_cascade.volumes.find import find_inputs
from kits_cascade.volumes.nifti import read_volume
from tests.inference.oracle import HU
from tests.volumes.painted_series import write_ct


def peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


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
        before, started, processor = peak_gib(), time.perf_counter(), time.process_time()
        paths = write_dicom(Path(folder) / "out", series, volume, labels, findings, "0" * 16, ("seg", "sr"))
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
        print("| slices | seconds | processor seconds | peak RSS before, after (GiB) | SEG, SR (MB) |")
        print("|---|---|---|---|---|")
        sizes = ", ".join(f"{path.stat().st_size / 1e6:.2f}" for path in paths)
        print(f"| {len(labels)} | {seconds:.1f} | {processor:.1f} | {before:.2f}, {peak_gib():.2f} | {sizes} |")


if __name__ == "__main__":
    main()
