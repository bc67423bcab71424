"""The cascade in one process gives what nnU-Net's own commands give, step by step and by hand."""

import numpy as np
import pytest

from kits_cascade.inference.cascade import CascadeOptions, Speed
from kits_cascade.labels import REGIONS
from kits_cascade.models.choose import resolve_models
from kits_cascade.runs.predict import predict_folder
from kits_cascade.stages import KIDNEY_STAGE, MASSES_STAGE
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import read_labels, write_volume
from tests.inference.handmade import PATCH, dice, make_case, write_models
from tests.inference.manual import manual_cascade, regions_of_run

SPEED = Speed(tta=False, tile_step=0.5, coarse_tile_step=0.75, engine="torch", precision="fp32")


def region_dice(one, other):
    return {region.name: dice(np.isin(one, region.labels), np.isin(other, region.labels)) for region in REGIONS}


@pytest.mark.slow
@pytest.mark.parametrize("patch", [32, 72])  # 48 mm, and 108 mm: larger than a kidney's box
def test_the_same_as_by_hand(tmp_path, monkeypatch, patch):
    for stage in (KIDNEY_STAGE, MASSES_STAGE):
        monkeypatch.setitem(PATCH, stage.key, [32, patch, patch])
    results = write_models(tmp_path / "nnUNet_results")
    # Thick slices (z is resampled apart), nearly isotropic ones, and an image that is stored in KiTS's own axes.
    for number, spacing in enumerate([(6.0, 1.5, 1.5), (2.0, 1.7, 1.6)]):
        image, _ = make_case(spacing, size_mm=(110, 110, 220), seed=number)
        write_volume(tmp_path / "in" / f"case_{number}_0000.nii.gz", image)
    summary = predict_folder(
        tmp_path / "in", tmp_path / "ours", resolve_models(results), device="cpu", options=CascadeOptions(), speed=SPEED
    )
    assert len(summary.done) == 2
    regions = regions_of_run(tmp_path / "ours" / "run.json")
    assert all(len(found) == 2 for found in regions.values())
    assert any(box != crop for found in regions.values() for box, crop in found) == (patch > 32)
    own = manual_cascade(tmp_path / "in", tmp_path / "manual", results, regions)
    for name, found in regions.items():
        ours, theirs = (read_labels(tmp_path / way / f"{name}.nii.gz") for way in ("ours", "manual"))
        assert all(count > 100 for count in np.bincount(theirs.array.ravel(), minlength=4))
        scores = region_dice(ours.array, theirs.array)
        assert min(scores.values()) >= 0.999, scores
        # The box from the coarse grid is that from the full-size coarse mask, but for rounding to that grid.
        for (one, _), other in zip(found, own[name], strict=True):
            assert close(one, other, ours.spacing), (one, other)


def close(one: Box, other: Box, spacing, coarse=(3.0, 2.5, 2.5)):
    """Equal to within two voxels of the coarse grid."""
    faces = zip(one.start + one.stop, other.start + other.stop, spacing * 2, coarse * 2, strict=True)
    return all(abs(a - b) * s <= 2 * c + s for a, b, s, c in faces)
