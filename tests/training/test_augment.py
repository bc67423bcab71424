"""The kidney mask channel: intensity never touches it, it stays binary, and it is wrong as often as asked."""

import numpy as np
import pytest
import torch

from kits_cascade.training import augment
from kits_cascade.training.augment import BinaryPrior, DistanceMaps, OnChannels, PerturbPrior


def box_mask(shape=(30, 32, 34)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(8, 20) for _ in shape)] = True
    return mask


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(0)  # noqa: NPY002


def test_intensity_sees_its_channels_only():
    image = torch.rand(3, 4, 4)
    before = image.clone()
    sample = OnChannels(lambda image: {"image": image * 0 + 7}, [0, 2])(image=image, segmentation="kept")
    assert (sample["image"][[0, 2]] == 7).all()
    assert torch.equal(sample["image"][1], before[1])
    assert sample["segmentation"] == "kept"


@pytest.mark.parametrize("shape", [(30, 32, 34), (40, 40)])
def test_grown_and_shrunk_contain_each_other(shape):
    mask = box_mask(shape)
    spacing = (1.5,) * len(shape)
    for _ in range(5):
        larger, smaller = augment.grown(mask, spacing), augment.shrunk(mask, spacing)
        assert (mask <= larger).all()
        assert (smaller <= mask).all()
        assert smaller.sum() <= mask.sum() <= larger.sum()


def test_growing_is_measured_in_mm(monkeypatch):
    monkeypatch.setattr(augment, "_uniform", lambda low, high: 4.0)
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    larger = augment.grown(mask, (4.0, 2.0, 1.0))
    assert larger[:, 4, 4].sum() == 3
    assert larger[4, :, 4].sum() == 5
    assert larger[4, 4, :].sum() == 9


def test_shifted_moves_without_wrapping_around():
    mask = box_mask()
    mask[:, :, -2:] = True
    for _ in range(20):
        moved = augment.shifted(mask, (1.0, 1.0, 1.0))
        assert moved.sum() <= mask.sum()
        assert moved.any()
        assert moved.shape == mask.shape


@pytest.mark.parametrize("shape", [(30, 32, 34), (40, 40)])
def test_without_part_removes_something(shape):
    mask = box_mask(shape)
    mask[tuple(slice(24, 28) for _ in shape)] = True
    for _ in range(10):
        less = augment.without_part(mask, (1.0,) * len(shape))
        assert (less <= mask).all()
        assert less.sum() < mask.sum()


def test_a_whole_component_can_go(monkeypatch):
    monkeypatch.setattr(augment, "_uniform", lambda low, high: 0.0)
    monkeypatch.setattr(augment, "_index", lambda count: 0)
    mask = box_mask()
    mask[24:28, 24:28, 24:28] = True
    less = augment.without_part(mask, (1.0, 1.0, 1.0))
    assert less.sum() == 4**3
    assert less[24:28, 24:28, 24:28].all()


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_mask_stays_binary_and_is_wrong_as_often_as_asked(probability):
    truth = torch.from_numpy(box_mask().astype(np.float32))
    soft = truth * 1.1 - 0.05
    transform = PerturbPrior(1, (2.0, 2.0, 2.0), probability)
    changed = 0
    for _ in range(60):
        image = torch.stack([torch.full_like(soft, 5.0), soft])
        out = transform(image=image, segmentation=None)["image"]
        assert (out[0] == 5).all()
        assert set(out[1].unique().tolist()) <= {0.0, 1.0}
        changed += not torch.equal(out[1], truth)
    assert changed == pytest.approx(60 * probability, abs=12 if probability == 0.5 else 0.1)


def test_lesions_are_lost_whole_and_nothing_else():
    mask, labels = box_mask(), np.zeros_like(box_mask(), dtype=np.int16)
    first = tuple(slice(a, a + 3) for a in np.argwhere(mask)[0])
    last = tuple(slice(a - 2, a + 1) for a in np.argwhere(mask)[-1])
    labels[first], labels[last] = 1, 2
    seen = set()
    for _ in range(40):
        lost = mask & ~augment.without_lesions(mask, labels > 0)
        assert not (lost & (labels == 0)).any()
        kinds = tuple(sorted(set(labels[lost].tolist())))
        assert lost.sum() == sum((labels == kind).sum() for kind in kinds)
        seen.add(kinds)
    assert seen == {(1,), (2,), (1, 2)}


def test_lesions_are_told_by_their_labels(monkeypatch):
    calls = []
    monkeypatch.setattr(augment, "LESIONS", 1.0)
    monkeypatch.setattr(augment, "without_lesions", lambda mask, lesions: calls.append(lesions.sum()) or mask)
    image, labels = torch.ones(1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    labels[0, 2:4, 2:4, 2:4] = 2
    labels[0, 6] = -1
    PerturbPrior(0, (1.0,) * 3, 1.0, (1, 2))(image=image, segmentation=labels)
    assert calls == [8]
    PerturbPrior(0, (1.0,) * 3, 1.0, ())(image=image, segmentation=labels)
    PerturbPrior(0, (1.0,) * 3, 1.0, (1,))(image=image, segmentation=labels)
    assert calls == [8], "a dataset whose labels are unknown, and a patch without a lesion"


def test_an_empty_mask_stays_empty():
    out = PerturbPrior(0, (1.0, 1.0, 1.0), 1.0)(image=torch.zeros(1, 8, 8, 8))
    assert not out["image"].any()


def test_a_full_mask_survives_every_change():
    transform = PerturbPrior(0, (1.0, 1.0), 1.0)
    for _ in range(20):
        out = transform(image=torch.ones(1, 12, 12))["image"]
        assert torch.isfinite(out).all()


def test_the_network_sees_a_binary_mask():
    seen = []
    network = torch.nn.Conv3d(2, 1, 1)
    network.register_forward_pre_hook(BinaryPrior([1]))
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(2, 2, 4, 4, 4) * 1.4 - 0.2
    network(image)
    assert torch.equal(seen[0][:, 0], image[:, 0])
    assert torch.equal(seen[0][:, 1], (image[:, 1] > 0.5).float())
    assert list(network.state_dict()) == ["weight", "bias"], "checkpoints stay as they are"


@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize("supervised", [True, False])
def test_distances_travel_as_one_more_target(regions, supervised):
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    labels[0, 2:6, 2:6, 2:6] = 1
    labels[0, 4] = 2
    finest = torch.cat([labels > 0, labels > 1, labels == 9]) if regions else labels
    given = [finest, finest[:, ::2]] if supervised else finest
    transform = DistanceMaps((2.0, 1.0, 1.0), regions=regions, classes=2, ignore_label=9)
    *targets, distance = transform(image=None, segmentation=given)["segmentation"]
    assert len(targets) == (2 if supervised else 1)
    assert targets[0] is finest
    assert distance.shape == (2, 8, 8, 8)
    assert distance.dtype == torch.float16
    assert distance[1, 4, 0, 0] < 0 < distance[1, 2, 0, 0]
    assert distance[1, 2, 0, 0] == 4


def test_ignored_voxels_have_distance_zero():
    labels = torch.zeros(1, 6, 6, dtype=torch.int16)
    labels[0, 2:4, 2:4] = 1
    labels[0, 5] = 2
    distance = DistanceMaps((1.0, 1.0), regions=False, classes=1, ignore_label=2).distances(labels)
    assert not distance[:, 5].any()
    assert distance[:, :5].any()
