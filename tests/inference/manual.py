"""The cascade by hand, as one would do it with nnU-Net's own commands: predict 221, crop, predict 222 and 223, paste.

python -m tests.inference.manual -i IMAGES -o OUT [--boxes RUN.JSON] [--results DIR] [--tta] [--step 0.5]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from kits_cascade.inference.pipeline import paint, paste
from kits_cascade.inference.postprocess import postprocess
from kits_cascade.inference.roi import without_strangers
from kits_cascade.stages import COARSE, KIDNEY_STAGE, MASSES_STAGE, MASSES_TUMOR, ROI_MARGIN_MM
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import case_name, read_labels, read_volume, write_volume
from kits_cascade.volumes.roi_boxes import kidney_boxes

REPOSITORY = Path(__file__).parent.parent.parent


def nnunet_predict(images, out, stage, results, step, tta):
    """nnU-Net's own command, one worker for each of its pools."""
    (folder,) = (Path(results) / stage.dataset).glob(f"*__*__{stage.configuration}")
    trainer, plans, configuration = folder.name.split("__")
    command = [
        sys.executable,
        "-c",
        "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as p; p()",
    ]
    command += [
        "-i",
        images,
        "-o",
        out,
        "-d",
        stage.dataset,
        "-tr",
        trainer,
        "-p",
        plans,
        "-c",
        configuration,
        "-f",
        "0",
    ]
    command += ["-device", "cpu", "-npp", "1", "-nps", "1", "-step_size", step, *([] if tta else ["--disable_tta"])]
    environment = os.environ | {"nnUNet_results": str(results), "nnUNet_compile": "f"}
    environment |= {name: str(Path(results).parent / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    subprocess.run(
        [str(part) for part in command], env=environment, cwd=REPOSITORY, check=True, stdout=sys.stderr, timeout=3000
    )


def manual_cascade(images, out, results, regions=None, step=0.5, coarse_step=0.75, tta=False, margin_mm=ROI_MARGIN_MM):
    """Label files in ``out``; the boxes that the full-size coarse masks ask for.

    ``regions`` (per case pairs of a box and what to crop around it) is where to work instead.
    """
    images, out = Path(images), Path(out)
    coarse, crops, kidneys, both, masses = (out / name for name in ("coarse", "crops", "kidney", "both", "masses"))
    nnunet_predict(images, coarse, COARSE, results, coarse_step, tta=False)
    cases = {case_name(path): path for path in sorted(images.glob("*.nii.gz"))}
    own, near = {}, {}
    for name in cases:
        mask = read_labels(coarse / f"{name}.nii.gz")
        own[name] = kidney_boxes(mask.array, mask.spacing, margin_mm)
        near[name] = mask.array
    regions = regions or {name: [(box, box) for box in boxes] for name, boxes in own.items()}
    for name, path in cases.items():
        volume = read_volume(path)
        for number, (_, crop) in enumerate(regions[name]):
            write_volume(crops / f"{name}_r{number}_0000.nii.gz", volume.cropped(crop.slices))
    nnunet_predict(crops, kidneys, KIDNEY_STAGE, results, step, tta)
    own_kidneys = {}
    for name in cases:
        for number, (box, crop) in enumerate(regions[name]):
            region = f"{name}_r{number}"
            image = read_volume(crops / f"{region}_0000.nii.gz")
            found = read_labels(kidneys / f"{region}.nii.gz").array > 0
            within = box.seen_from(crop)
            kidney = without_strangers(within.crop(found), box.crop(near[name]), box, near[name].shape)
            within.paste(found, kidney)
            write_volume(both / f"{region}_0000.nii.gz", image)
            write_volume(both / f"{region}_0001.nii.gz", image, found.astype(np.uint8))
            own_kidneys[region] = kidney
    nnunet_predict(both, masses, MASSES_STAGE, results, step, tta)
    for name, path in cases.items():
        volume = read_volume(path)
        labels, kidney_mask = np.zeros(volume.shape, np.uint8), np.zeros(volume.shape, bool)
        for number, (box, crop) in enumerate(regions[name]):
            kidney = own_kidneys[f"{name}_r{number}"]
            within = box.seen_from(crop)
            mass = within.crop(read_labels(masses / f"{name}_r{number}.nii.gz").array)
            paste(labels, box, paint(kidney, mass > 0, mass == MASSES_TUMOR))
            box.crop(kidney_mask)[kidney] = True
        write_volume(out / f"{name}.nii.gz", volume, postprocess(labels, volume.spacing, kidney=kidney_mask).labels)
    return own


def regions_of_run(path):
    """The boxes of a run of the cascade, each with what the fine networks were shown around it."""
    cases = json.loads(Path(path).read_text(encoding="utf-8"))["cases"]
    return {
        name: [
            (Box.from_json(box), Box.from_json(crop)) for box, crop in zip(case["boxes"], case["crops"], strict=True)
        ]
        for name, case in cases.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-i", required=True)
    parser.add_argument("-o", required=True)
    parser.add_argument("--results", default=os.environ.get("nnUNet_results"))
    parser.add_argument("--boxes")
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--step", type=float, default=0.5)
    given = parser.parse_args()
    chosen = regions_of_run(given.boxes) if given.boxes else None
    manual_cascade(given.i, given.o, given.results, chosen, given.step, tta=given.tta)
