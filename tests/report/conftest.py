"""Small cases on disk."""

import pytest

from tests.evaluation.small_scores import label_map, write


@pytest.fixture
def folders(tmp_path):
    """(predictions, truth) with three good cases of rising quality."""
    predictions, truth = tmp_path / "pred", tmp_path / "truth"
    for number, shift in ((0, 3), (1, 1), (500, 0)):
        write(truth / f"case_{number:05d}" / "segmentation.nii.gz", label_map())
        write(predictions / f"case_{number:05d}.nii.gz", label_map(shift))
    return predictions, truth
