"""Training on cases that are painted meanwhile: the pool, crops, the loop, and the model that comes out."""

import numpy as np
import pytest
import torch

from kits_cascade.errors import UsageError
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.models.checkpoint import load_checkpoint
from kits_cascade.stages import COARSE, KIDNEY_STAGE, MASSES_STAGE
from kits_cascade.synthetic.painter import PaintOptions, Sources, paint_case
from kits_cascade.training.stream import loop, pool
from kits_cascade.training.stream import stage_stream as stages
from kits_cascade.training.stream.crops import Cropper, CropPlan
from kits_cascade.training.stream.spoilt_prior import Prior
from tests.inference.handmade import unet_plan
from tests.synthetic.sources import write_anatomy, write_mask

CPU = torch.device("cpu")
OPTIONS = PaintOptions((6.0, 6.0, 6.0), view="abdomen")


@pytest.fixture(scope="module")
def painting(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream")
    write_anatomy(root / "anatomy")
    write_mask(root / "masks")
    sources = Sources.find(root / "anatomy", root / "masks")
    made = pool.Painting(root / "pool", sources, 3, 3, OPTIONS)
    made.folder.mkdir()
    pool.paint_share(made, 0, 1)
    return made


@pytest.fixture(scope="module")
def cases(painting):
    found = pool.Pool(painting.folder, CPU, 3)
    assert found.take_in() == 3
    return found.cases


def plan_crops(**changed):
    chosen = {"patch": (16, 16, 16), "step": 1.0, "focus": (("tumor", 1.0),), "region": 0.5} | changed
    return CropPlan(**chosen)


def tiny_plans(configuration, channels=1, spacing=6.0):
    return {
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 80.0, "std": 90.0, "percentile_00_5": -160.0, "percentile_99_5": 320.0}
        },
        "configurations": {
            configuration: {
                "spacing": [spacing] * 3,
                "patch_size": [16, 16, 16],
                "normalization_schemes": ["CTNormalization", "NoNormalization"][:channels],
                "architecture": unet_plan(
                    [4, 8], [(2, 2, 2)] * 2, "kits_cascade.training.networks.subvoxel.SubvoxelUNet"
                ),
            }
        },
    }


def make_job(root, stage, steps=3, **changed):
    plans = tiny_plans(stage.configuration, len(stage.channels), changed.pop("spacing", 6.0))
    course = loop.Course(1e9, 2, most_steps=steps)
    dataset = {"labels": {"background": 0}}
    return stages.StreamJob(stage, "PaintedTrainer", plans, dataset, root / stage.key / "fold_0", course, 1, **changed)


def test_a_pooled_case_is_the_painted_one(painting, cases):
    painted = paint_case(painting.sources, 3, 0, OPTIONS)
    pooled = cases[0]
    code = pooled.code.numpy()
    assert np.array_equal(code >> pool.TISSUE_BITS, painted.labels)
    assert np.array_equal((code & 63) - 1, painted.tissue)
    assert np.array_equal(pooled.hu.numpy(), np.clip(painted.image, -500, 900))
    low, high = pooled.box
    inside = np.argwhere(painted.labels > 0)
    assert (inside.min(0) == low).all()
    assert (inside.max(0) == high - 1).all()
    z, y, x = pooled.spots["tumor"].astype(int).T
    assert (painted.labels[z, y, x] == TUMOR).all()


def test_painting_goes_on_and_mends_what_is_half_written(painting, tmp_path):
    again = pool.Painting(tmp_path, painting.sources, 3, 2, OPTIONS)
    whole = painting.path(0).read_bytes()
    again.path(0).write_bytes(whole[: len(whole) // 2])
    again.path(1).write_bytes(painting.path(1).read_bytes())
    taken = pool.Pool(tmp_path, CPU, 5)
    assert taken.take_in() == 1, "half a file is no case"
    assert not again.path(0).exists()
    before = again.path(1).stat().st_mtime_ns
    pool.paint_share(again, 0, 1)
    assert again.path(0).read_bytes() == whole
    assert again.path(1).stat().st_mtime_ns == before


def test_crops_are_repeatable_and_show_what_they_are_to(cases):
    first, second = (Cropper(plan_crops(), 5, CPU).batch(cases, 4) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    image, labels = first
    assert image.shape == (4, 1, 16, 16, 16)
    assert image.min() >= (-160 - 80) / 90 - 1e-5
    assert image.max() <= (320 - 80) / 90 + 1e-5
    assert set(labels.unique().tolist()) <= {0, KIDNEY, TUMOR, CYST}
    assert ((labels == TUMOR).flatten(1).sum(1) > 0).float().mean() >= 0.5


def test_crops_hold_the_kidney_where_its_label_is(cases):
    """Kidneys are brighter than what is around them, in every crop: image and labels move together."""
    image, labels = Cropper(plan_crops(focus=(("kidney", 1.0),), region=0.0), 2, CPU).batch(cases, 12)
    inside = image[:, 0][labels == KIDNEY].mean()
    around = image[:, 0][labels == 0].mean()
    assert inside > around + 0.5


def test_beyond_the_scan_there_is_nothing(cases):
    big = plan_crops(patch=(96, 96, 96), focus=(("", 1.0),), region=1.0)
    image, labels = Cropper(big, 1, CPU).batch(cases, 1)
    assert (image[0, 0, 0] == 0).all(), "as nnU-Net pads"
    assert not labels[0, 0].any()


def test_dice_and_loss_by_hand():
    truth = torch.zeros(1, 2, 1, 1, 4)
    truth[0, 0, 0, 0, :2] = 1
    share = torch.zeros_like(truth)
    share[0, 0, 0, 0, 1:3] = 1
    # First region: overlap 1, sums 2 and 2; the second is empty on both sides.
    assert float(loop.soft_dice(share, truth)) == pytest.approx(((2 + 1) / (4 + 1) + 1) / 2)
    right, wrong = (truth * 20 - 10) * 1.0, (truth * -20 + 10) * 1.0
    assert float(loop.loss_of(right, truth)) < 0.01
    assert float(loop.loss_of(wrong, truth)) > 5
    classes = torch.cat([-right[:, :1], right[:, :1]], 1)
    assert float(loop.loss_of(classes, truth[:, :1])) < 0.01


def test_spoilt_masks_are_masks_and_miss_lesions_now_and_then():
    labels = torch.zeros(40, 12, 12, 12, dtype=torch.long)
    labels[:, 3:9, 3:9, 3:9] = KIDNEY
    labels[:, 5:8, 5:8, 5:8] = TUMOR
    planes = Prior(None, 1.0, 4, CPU).planes(torch.zeros(40, 1, 12, 12, 12), labels)
    assert planes.shape == (40, 1, 12, 12, 12)
    assert set(planes.unique().tolist()) == {0.0, 1.0}
    shares = planes[:, 0][:, 6, 6, 6]
    assert 0 < (shares == 0).sum() < 20
    assert len({int(plane.sum()) for plane in planes}) > 2


def test_a_network_learns_and_goes_on_where_it_was(tmp_path, cases):
    job = make_job(tmp_path, KIDNEY_STAGE, steps=12)
    job.fold.mkdir(parents=True)
    training = stages.make_training(job, 6.0, CPU)
    losses = []
    for _ in range(2):
        training.run(cases, losses.append)
    state = torch.load(job.fold / stages.STATE_FILE, weights_only=True)
    assert state["step"] == 12
    longer = make_job(tmp_path, KIDNEY_STAGE, steps=14)
    again = stages.make_training(longer, 6.0, CPU)
    again.run(cases, losses.append)
    assert torch.load(job.fold / stages.STATE_FILE, weights_only=True)["step"] == 14
    averaged = again.averaged().state_dict()
    assert any(not torch.equal(tensor, averaged[name]) for name, tensor in state["average"].items())
    assert len(state["average"]) < len(averaged), "each tensor is kept once"


def test_stages_give_models_that_nnunet_and_we_can_read(tmp_path, painting, monkeypatch):
    monkeypatch.setattr(stages, "start_painters", lambda painting, workers: [])
    said = []
    kidney = stages.stream_stage(make_job(tmp_path, KIDNEY_STAGE), painting, CPU, 1, said.append)
    masses = make_job(tmp_path, MASSES_STAGE, start=kidney, kidney=kidney)
    checkpoint = stages.stream_stage(masses, painting, CPU, 1, said.append)
    content = load_checkpoint(checkpoint)
    assert content["trainer_name"] == "PaintedTrainer"
    assert content["init_args"] == {"configuration": "3d_fullres", "fold": 0}
    first = next(t for name, t in content["network_weights"].items() if t.ndim == 5 and "encoder.stages.0" in name)
    assert first.shape[1] == 2, "the CT, and the kidney mask"
    assert (checkpoint.parents[1] / "plans.json").is_file()
    assert said
    assert (checkpoint.parent / stages.STREAM_LOG).read_text().splitlines() == said[-2:]


def test_voxels_that_are_no_cubes_are_refused(tmp_path):
    job = make_job(tmp_path, COARSE)
    job.plans["configurations"][COARSE.configuration]["spacing"] = [4.0, 2.0, 2.0]
    with pytest.raises(UsageError, match="cubes"):
        stages.make_training(job, 2.0, CPU)
