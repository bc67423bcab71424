"""Our in-process stages answer as nnU-Net's own predictor does on the same array."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from kits_cascade.errors import ModelError
from kits_cascade.inference.nnunet.engines import as_nnunet
from kits_cascade.inference.nnunet.plan_rules import plan_method
from kits_cascade.inference.nnunet.predictors import NnunetPredictors
from kits_cascade.inference.nnunet.resample import Method, new_shape, resample
from kits_cascade.inference.nnunet.stage import StageNetwork
from kits_cascade.inference.nnunet.tiles import TileOptions
from kits_cascade.inference.roi import FineGrid
from kits_cascade.models.choose import resolve_models
from kits_cascade.nnunet_plugin import kits_cascade_trainers
from kits_cascade.stages import COARSE, KIDNEY_STAGE, MASSES_STAGE
from kits_cascade.training import trainers
from kits_cascade.training.base import KitsTrainer
from kits_cascade.training.devices import choose_device
from kits_cascade.training.trainer_names import OUR_TRAINERS
from kits_cascade.volumes.geometry import Box
from tests.inference.handmade import make_case, write_model, write_models

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit, in what nnU-Net's search imports
FINE = (0.78125, 0.78125, 0.78125)
ALL_TILES = TileOptions(0.5, mirror=True, skip_beyond_mm=None)


@pytest.mark.parametrize(
    ("shape", "spacing", "target"),
    [
        ((9, 30, 41), (5.0, 0.8, 0.7), FINE),  # thick slices: z apart, by its nearest neighbour
        ((26, 21, 30), (0.5, 0.7, 0.9), FINE),
        ((12, 21, 30), (2.0, 0.7, 0.9), FINE),
        ((22, 23, 9), (0.78, 0.9, 4.0), (0.8, 0.8, 0.8)),  # another axis apart
        ((9, 30, 41), (3.0, 0.78125, 0.78125), FINE),  # in plane nothing changes
    ],
)
@pytest.mark.parametrize(
    ("name", "function", "options"),
    [
        ("resample_data_or_seg_to_shape", resample_data_or_seg_to_shape, {"order": 3, "order_z": 0}),
        ("resample_data_or_seg_to_shape", resample_data_or_seg_to_shape, {"order": 1, "order_z": 0}),
        ("resample_torch_fornnunet", resample_torch_fornnunet, {}),
    ],
)
@pytest.mark.parametrize("separate", [None, False])
def test_resampling_is_nnunets(shape, spacing, target, name, function, options, separate):
    array = np.random.default_rng(0).normal(scale=100, size=shape).astype(np.float32)
    options = {"is_seg": False, "force_separate_z": separate, **options}
    there = new_shape(shape, spacing, target)
    expected = function(array[None], there, spacing, target, **options)[0]
    method = plan_method(name, options, spacing, target)
    for stored in (array, np.asfortranarray(array), array[::-1, :, ::-1].copy()[::-1, :, ::-1]):
        np.testing.assert_allclose(resample(stored, there, method), expected, atol=2e-3)


def test_resampling_in_slabs_is_seamless(monkeypatch):
    array = np.random.default_rng(0).normal(size=(40, 31, 20)).astype(np.float32)
    for method in (Method(3), Method(1), Method(3, separate=0), Method(1, separate=0), Method(0)):
        whole = resample(array, (23, 40, 25), method)
        monkeypatch.setattr("kits_cascade.inference.nnunet.resample._SLAB_VOXELS", 1300)
        np.testing.assert_allclose(resample(array, (23, 40, 25), method), whole, atol=1e-5)
        monkeypatch.undo()


def test_what_is_not_known_is_left_to_nnunet():
    assert plan_method("no_resampling_hack", {}, (1, 1, 1), (2, 2, 2)) is None
    assert plan_method("resample_torch_fornnunet", {"mode": "bicubic"}, (1, 1, 1), (2, 2, 2)) is None


def one_kidney(spacing=(3.0, 1.6, 1.4)):
    """The part of a volume around the kidney with the tumour."""
    image, labels = make_case(spacing)
    low, high = int(35 / spacing[0]), int(120 / spacing[0])
    part = np.s_[low:high, 42:80, 20:70]
    return image.cropped(part), labels.array[part]


def reference(folder):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    return predictor


@pytest.mark.parametrize("spacing", [(5.0, 1.6, 1.4), (1.0, 1.6, 1.4)])
@pytest.mark.parametrize("turned", [False, True])
def test_stages_answer_as_nnunet(tmp_path, spacing, turned):
    changes = {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]} if turned else {}
    folders = {s.key: write_model(tmp_path, s, **changes) for s in (COARSE, KIDNEY_STAGE, MASSES_STAGE)}
    image = one_kidney(spacing)[0].array.copy()
    image[:, :3] = 0  # an empty border, which nnU-Net crops away
    networks = NnunetPredictors(resolve_models(tmp_path), "cpu", ALL_TILES, ALL_TILES)

    def expected(stage, *channels):
        data = np.stack([c.astype(np.float32) for c in channels])
        return reference(folders[stage]).predict_single_npy_array(data, {"spacing": list(spacing)})

    region = networks.region(image, spacing, Box.full(image.shape))
    kidney = region.kidney(None)
    np.testing.assert_array_equal(kidney, expected("kidney", image) > 0)
    assert 0 < kidney.mean() < 0.5
    masses, tumor = region.masses(kidney, kidney)
    labels = expected("masses", image, kidney)
    np.testing.assert_array_equal(masses, labels > 0)
    np.testing.assert_array_equal(tumor, labels == 2)
    assert tumor.any()


def test_the_grid_is_in_the_volume_s_axes_and_holds_every_patch(tmp_path):
    turned = {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    write_model(tmp_path, COARSE)
    write_model(tmp_path, KIDNEY_STAGE, spacing=[1.0, 2.0, 3.0], **turned)
    write_model(tmp_path, MASSES_STAGE, spacing=[4.0, 1.0, 1.0])
    networks = NnunetPredictors(resolve_models(tmp_path), "cpu")
    # The kidney's plan has x first: its axes are those of the volume once they are turned back. Along z the masses'
    # patch is the longer one: 32 voxels of 4 mm.
    assert networks.grid == FineGrid((2.0, 3.0, 1.0), (64, 32, 32), 0.5)
    flat = NnunetPredictors(resolve_models(tmp_path), "cpu")
    flat.mass_stages[0].__dict__["configuration"] = SimpleNamespace(spacing=[1.0, 1.0], patch_size=[32, 32])
    assert flat.grid is None


@pytest.mark.parametrize(("mm", "fine", "patch"), [(0.56, 0.8, 80), (0.525, 0.7, 64), (0.7734, 0.78125, 96)])
def test_tiles_are_counted_as_nnunet_lays_them(mm, fine, patch):
    for step in (0.5, 0.75):
        grid = FineGrid((fine,) * 3, (patch,) * 3, step)
        for size in range(40, 400):
            (length, *_) = new_shape((size,) * 3, (mm,) * 3, (fine,) * 3)
            assert grid.voxels(0, size, (mm,) * 3) == length
            steps = compute_steps_for_sliding_window((max(length, patch),), (patch,), step)
            assert grid.tiles(0, size, (mm,) * 3) == len(steps[0])


def test_tiles_that_cannot_matter_change_nothing_near_the_kidney(tmp_path):
    write_models(tmp_path)
    image, labels = make_case((3.0, 1.6, 1.4), size_mm=(110, 110, 220))
    near = labels.array > 0
    near[:, :, 75:] = False  # one kidney only
    results = []
    for skip in (None, 10.0):
        tiles = TileOptions(0.5, mirror=False, skip_beyond_mm=skip)
        networks = NnunetPredictors(resolve_models(tmp_path), "cpu", tiles, tiles)
        count = []
        networks.on_tile = lambda count=count: count.append(1)
        region = networks.region(image.array, image.spacing, Box.full(image.shape))
        kidney = region.kidney(near)
        results.append((len(count), kidney, *region.masses(near, near)))
    (all_tiles, *full), (fewer, *lean) = results
    assert fewer < 0.6 * all_tiles
    around = np.s_[:, :, :80]
    for one, other in zip(full, lean, strict=True):
        np.testing.assert_array_equal(one[around], other[around])
    assert full[0][:, :, 100:].any()
    assert not lean[0][:, :, 120:].any()


def test_no_tile_at_all_is_background(tmp_path):
    write_models(tmp_path)
    image, _ = one_kidney()
    networks = NnunetPredictors(resolve_models(tmp_path), "cpu")
    region = networks.region(image.array, image.spacing, Box.full(image.shape))
    nowhere = np.zeros(image.shape, bool)
    assert not region.kidney(nowhere).any()
    assert not any(mask.any() for mask in region.masses(nowhere, nowhere))


def test_coarse_keeps_its_own_grid(tmp_path):
    write_models(tmp_path)
    image, labels = make_case()
    coarse = NnunetPredictors(resolve_models(tmp_path), "cpu").coarse(image.array, image.spacing)
    assert coarse.shape == new_shape(image.shape, image.spacing, (3.0, 2.5, 2.5))
    found, truth = Box.around(coarse).on_grid(coarse.shape, image.shape), Box.around(labels.array)
    assert all(abs(a - b) <= 3 for a, b in zip(found.start + found.stop, truth.start + truth.stop, strict=True))


def test_folds_are_averaged_and_shared_ct_is_resampled_once(tmp_path, monkeypatch):
    write_models(tmp_path, folds=(0, 1))
    image, _ = one_kidney()
    networks = NnunetPredictors(resolve_models(tmp_path), "cpu")
    assert len(networks.kidney_stage.predictor.folds) == 2
    calls = []
    prepare = type(networks.kidney_stage)._prepare_channel
    monkeypatch.setattr(
        type(networks.kidney_stage), "_prepare_channel", lambda self, n, *a: calls.append(n) or prepare(self, n, *a)
    )
    region = networks.region(image.array, image.spacing, Box.full(image.shape))
    kidney = region.kidney(None)
    region.masses(kidney, kidney)
    assert calls == [0, 1]  # the CT, then the kidney mask


def test_the_two_network_scheme(tmp_path):
    write_models(tmp_path)
    image, labels = one_kidney()
    kidney = labels > 0
    together = (
        NnunetPredictors(resolve_models(tmp_path), "cpu")
        .region(image.array, image.spacing, None)
        .masses(kidney, kidney)
    )
    both = tmp_path / "pair"
    for stage in (COARSE, KIDNEY_STAGE):
        write_model(both, stage)
    for trainer in ("MassTrainer", "TumorTrainer"):
        # Single-region networks as the trainers save them: one region, one head.
        folder = write_model(both, MASSES_STAGE, trainer)
        name, values = ("masses", [1, 2]) if trainer == "MassTrainer" else ("tumor", [2, 2])
        content = json.loads((folder / "dataset.json").read_text())
        content["labels"] = {"background": 0, name: values}
        content["regions_class_order"] = [values[-1]]
        (folder / "dataset.json").write_text(json.dumps(content))
        plans = json.loads((folder / "plans.json").read_text())
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["only"] = name
        (folder / "plans.json").write_text(json.dumps(plans))
    networks = NnunetPredictors(resolve_models(both), "cpu")
    networks.keep_probabilities = True
    region = networks.region(image.array, image.spacing, None)
    apart = region.masses(kidney, kidney)
    # Each network's own: the second must not take the first one's place.
    assert {name: values.shape[0] for name, values in region.probabilities.items()} == {"masses": 1, "tumor": 1}
    np.testing.assert_array_equal(region.probabilities["tumor"][0] > 0.5, apart[1])
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.any()


def test_probabilities_in_the_regions_shape(tmp_path):
    write_models(tmp_path)
    image, _ = one_kidney()
    networks = NnunetPredictors(resolve_models(tmp_path), "cpu")
    networks.keep_probabilities = True
    region = networks.region(image.array, image.spacing, None)
    kidney = region.kidney(None)
    region.masses(kidney, kidney)
    assert {k: v.shape for k, v in region.probabilities.items()} == {
        "kidney": (2, *image.shape),
        "masses": (2, *image.shape),
    }
    np.testing.assert_array_equal(region.probabilities["kidney"].argmax(0) > 0, kidney)
    assert [network.stage for network in region.certainty] == ["kidney", "masses"]
    for network in region.certainty:
        assert network.values.ndim == 3 and network.part.shape == image.shape
        assert network.values.min() >= 0.5 and network.values.max() <= 1


def test_our_trainers_train_the_network_of_the_plans():
    """By their entry in the plans, or by name, they are known, and their network is built without them."""
    ours = {n: getattr(kits_cascade_trainers, n) for n in vars(kits_cascade_trainers) if n.endswith("Trainer")}
    assert set(ours) == OUR_TRAINERS
    assert {kind.build_network_architecture for kind in ours.values()} == {KitsTrainer.build_network_architecture}


def test_our_networks_see_a_binary_kidney_channel(tmp_path):
    write_models(tmp_path)
    folder = write_model(
        tmp_path / "prior", MASSES_STAGE, "SurfaceLossTrainer_50epochs", kits_cascade={"prior_channels": [1]}
    )
    model = replace(resolve_models(tmp_path).masses[0], folder=folder, trainer="SurfaceLossTrainer_50epochs")
    stage = StageNetwork(model, as_nnunet("cpu"), TileOptions())
    built = trainers.SurfaceLossTrainer.build_network_architecture(
        stage.plans, stage.configuration, 2, 2, enable_deep_supervision=False
    )
    soft = torch.rand((1, 2, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stage.predictor.network(soft), built(soft), atol=0, rtol=0)
    (hook,) = stage.predictor.network.module._forward_pre_hooks.values()
    assert hook.channels == [1]


def test_an_unknown_trainer_is_named(tmp_path):
    write_models(tmp_path)
    folder = write_model(tmp_path, COARSE, "NobodysTrainer")
    with pytest.raises(ModelError, match="NobodysTrainer"):
        NnunetPredictors(resolve_models(tmp_path, choose={"coarse": "NobodysTrainer"}), "cpu")
    assert folder.exists()


def test_device_names():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(Exception, match="no device 'gpu'"):
        choose_device("gpu")
