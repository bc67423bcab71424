"""Any nnU-Net network of KiTS as the fine stage: what it answers, how it is found, and what is refused."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from kits_cascade.errors import ModelError
from kits_cascade.inference.nnunet.predictors import NnunetPredictors
from kits_cascade.inference.nnunet.tiles import TileOptions
from kits_cascade.inference.pipeline import paint, run_cascade
from kits_cascade.models.choose import resolve_models
from kits_cascade.models.fine import kits_names, read_fine
from kits_cascade.stages import COARSE, KIDNEY_STAGE, SOURCE_CLASS_ORDER, SOURCE_LABELS
from tests.inference.handmade import make_case, plans, unet_plan, write_model

TILES = TileOptions(0.5, mirror=False, skip_beyond_mm=None)
BY_LABELS = {"background": 0, "kidney": 1, "Tumour": 2, "cyst": 3}
NETWORK = unet_plan([8, 8])


def write_fine(root: Path, labels, order=None, name="nnUNetTrainer__nnUNetPlans__3d_fullres") -> Path:
    """An untrained network of KiTS: its answers are noise, which is the hardest to get right voxel for voxel."""
    folder = root / "Dataset777_KiTS" / name
    (folder / "fold_0").mkdir(parents=True)
    content = plans(KIDNEY_STAGE, [16, 32, 32], [1.5, 1.5, 1.5])
    content["configurations"]["3d_fullres"]["architecture"] = NETWORK
    torch.manual_seed(1)
    built = NETWORK["arch_kwargs"] | {
        "conv_op": torch.nn.Conv3d,
        "norm_op": torch.nn.InstanceNorm3d,
        "nonlin": torch.nn.LeakyReLU,
        "num_classes": len(labels) - (order is not None),
    }
    network = PlainConvUNet(1, **built)
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(content))
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset | ({"regions_class_order": list(order)} if order else {})))
    return folder


def zipped(folder: Path, target: Path, **more: str) -> Path:
    """As nnUNetv2_export_model_to_zip makes it, with files beside that nobody needs."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder.parent.parent))
        for name, text in {f"{folder.parent.name}/{folder.name}/fold_0/progress.png": "picture", **more}.items():
            archive.writestr(name, text)
    return target


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("labels", "order"), [(BY_LABELS, None), (SOURCE_LABELS, SOURCE_CLASS_ORDER)])
def test_in_the_region_it_answers_as_nnunet_on_the_crop(tmp_path, labels, order):
    write_model(tmp_path, COARSE)
    folder = write_fine(tmp_path / "other", labels, order)
    models = resolve_models(tmp_path, fine=zipped(folder, tmp_path / "public.zip"))
    assert [model.key for model in models.all] == ["coarse", "fine"]
    image = make_case((3.0, 1.6, 1.4))[0].array[15:40, 42:80, 20:70]
    networks = NnunetPredictors(models, "cpu", TILES, TILES)
    region = networks.region(image, (3.0, 1.6, 1.4), None)
    kidney = region.kidney(None)
    masses, tumor = region.masses(kidney, kidney)
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    expected = predictor.predict_single_npy_array(image[None].astype(np.float32), {"spacing": [3.0, 1.6, 1.4]})
    np.testing.assert_array_equal(paint(kidney, masses, tumor), expected)
    assert set(np.unique(expected)) == {0, 1, 2, 3}


def test_the_whole_cascade_with_a_network_of_ones_own(tmp_path):
    write_model(tmp_path, COARSE)
    models = resolve_models(tmp_path, fine=write_fine(tmp_path / "other", BY_LABELS).parent)
    image, _ = make_case((3.0, 1.6, 1.4), size_mm=(110, 110, 220))
    few = TileOptions(1.0, mirror=False)
    networks = NnunetPredictors(models, "cpu", few, few)
    result = run_cascade(image.array, image.spacing, networks)
    assert len(result.boxes) >= 1
    assert {told.stage for told in result.certainty[0]} == {"kidney", "masses"}
    assert networks.grid is not None
    assert "fine" in {model.label for model in models.all}


def test_names_in_every_spelling():
    everything = {"kidney": ("Kidneys", "lesions", "tumour"), "masses": ("lesions", "tumour"), "tumor": ("tumour",)}
    assert kits_names({"background": 0, "Kidneys": [1, 2], "tumour": 2, "lesions": [2]}) == everything
    with pytest.raises(ModelError, match="its labels are background, liver"):
        kits_names({"background": 0, "liver": 1})


def test_what_is_found_in_a_folder(tmp_path):
    folder = write_fine(tmp_path, BY_LABELS)
    for place in (folder, folder.parent, tmp_path):
        assert read_fine(place).folder == folder
    assert read_fine(folder, [0]).folds == (0,)
    with pytest.raises(ModelError, match="fold 3"):
        read_fine(folder, [3])
    write_fine(tmp_path, BY_LABELS, name="Other__nnUNetPlans__3d_fullres")
    with pytest.raises(ModelError, match="holds 2 networks"):
        read_fine(tmp_path)
    with pytest.raises(ModelError, match="no trained network"):
        read_fine(folder / "fold_0")
    with pytest.raises(ModelError, match="no such file"):
        read_fine(tmp_path / "nowhere")


def changed(folder: Path, name: str, **changes) -> Path:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))
    return folder


def test_networks_that_are_no_fine_stage_are_refused(tmp_path):
    folder = write_fine(tmp_path / "a", BY_LABELS)
    with pytest.raises(ModelError, match="takes 2 channels"):
        read_fine(changed(folder, "dataset.json", channel_names={"0": "CT", "1": "noNorm"}))
    folder = write_fine(tmp_path / "b", BY_LABELS)
    configurations = json.loads((folder / "plans.json").read_text())["configurations"]
    configurations["3d_fullres"]["previous_stage"] = "3d_lowres"
    with pytest.raises(ModelError, match="needs the segmentation of 3d_lowres"):
        read_fine(changed(folder, "plans.json", configurations=configurations))
    configurations["3d_fullres"]["architecture"]["network_class_name"] = "os.system"
    with pytest.raises(ModelError, match=r"names 'os.system'"):
        read_fine(changed(folder, "plans.json", configurations=configurations))


class Harm:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def test_a_zip_can_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_fine(tmp_path / "a", BY_LABELS)
    inside = f"{folder.parent.name}/{folder.name}"
    sound = zipped(folder, tmp_path / "sound.zip", **{"../../outside.txt": "never unpacked"})
    found = read_fine(sound)
    assert read_fine(sound) == replace(found)
    assert sorted(p.name for p in found.folder.rglob("*") if p.is_file()) == [
        "checkpoint_final.pth",
        "dataset.json",
        "plans.json",
    ]
    assert not list(tmp_path.rglob("outside.txt"))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zipped(folder, tmp_path / "twice.zip", **{f"{inside}/plans.json": "{}"})
    bomb = zipped(folder, tmp_path / "bomb.zip", **{f"{inside}/fold_1/checkpoint_final.pth": "0" * (80 << 20)})
    two = zipped(folder, tmp_path / "two.zip", **{f"{folder.parent.name}/A__B__C/plans.json": "{}"})
    nothing = zipped(folder / "fold_0", tmp_path / "nothing.zip")
    for path, reason in (
        (twice, "twice"),
        (bomb, "far more than it has"),
        (two, "one trained network"),
        (nothing, "no trained network"),
    ):
        with pytest.raises(ModelError, match=reason):
            read_fine(path)
    (tmp_path / "broken.zip").write_bytes(sound.read_bytes()[:1000])
    with pytest.raises(ModelError, match="not a sound zip"):
        read_fine(tmp_path / "broken.zip")
    torch.save({"network_weights": Harm()}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ModelError, match="safe to load"):
        read_fine(zipped(folder, tmp_path / "harm.zip"))
    assert not (tmp_path / "harm").exists()
    shutil.rmtree(folder)
