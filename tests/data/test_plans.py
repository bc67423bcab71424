"""Plans and preprocessing: nnU-Net's own results, with our presets laid over them."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest

from kits_cascade.data.derive import derive_stages
from kits_cascade.data.lean import LeanPreprocessor, LeanReader
from kits_cascade.data.plans import plan_stages
from kits_cascade.data.presets import apply_preset, load_preset, preset_folder
from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.files import read_json, write_json
from kits_cascade.training.architecture import check_network

from .small import make_source, tree

REPOSITORY = Path(__file__).parents[2]
TINY = {
    "stages": {
        "coarse": {
            "3d_lowres": {
                "spacing": [4.0, 4.0, 4.0],
                "patch_size": [16, 16, 16],
                "batch_size": 2,
                "architecture": {
                    "arch_kwargs": {
                        "n_stages": 2,
                        "features_per_stage": [4, 8],
                        "kernel_sizes": [[3, 3, 3]] * 2,
                        "strides": [[1, 1, 1], [2, 2, 2]],
                        "n_conv_per_stage": [1, 1],
                        "n_conv_per_stage_decoder": [1],
                    }
                },
            }
        }
    }
}


@pytest.fixture
def preset(tmp_path):
    """A preset file with small networks for all stages; the answer is its path."""
    content = copy.deepcopy(TINY)
    fine = {**content["stages"]["coarse"]["3d_lowres"], "spacing": [2.5, 2.5, 2.5]}
    content["stages"] |= {"kidney": {"3d_fullres": fine}, "masses": {"3d_fullres": fine}}
    write_json(tmp_path / "tiny.json", content)
    return str(tmp_path / "tiny.json")


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The demo preset on four small cases: planned once, looked at by many tests."""
    root = tmp_path_factory.mktemp("planned")
    folders = make_source(root)
    derive_stages(folders, jobs=1)
    seen = []
    report = plan_stages(folders, preset="demo", progress=lambda *step: seen.append(step))
    return folders, report, seen


def folder_of(folders, stage):
    names = {"coarse": "Dataset221_KidneyCoarse", "kidney": "Dataset222_KidneyFine", "masses": "Dataset223_MassesTumor"}
    return folders.preprocessed / names[stage]


def test_everything_that_training_needs_is_there(planned):
    folders, report, seen = planned
    assert report.preprocessed == {"coarse": 4, "kidney": 4, "masses": 4}
    assert report.commands == [
        "nnUNetv2_train 221 3d_lowres 0",
        "nnUNetv2_train 222 3d_fullres 0 -tr SurfaceLossTrainer",
        "nnUNetv2_train 223 3d_fullres 0 -tr SurfaceLossTrainer",
    ]
    for stage, configuration in (("coarse", "3d_lowres"), ("kidney", "3d_fullres"), ("masses", "3d_fullres")):
        folder = folder_of(folders, stage)
        data = folder / f"nnUNetPlans_{configuration}"
        assert len(list(data.iterdir())) == 3 * 4
        assert len(list((folder / "gt_segmentations").iterdir())) == 4
        for name in ("nnUNetPlans.json", "dataset.json", "splits_final.json", "dataset_fingerprint.json"):
            assert (folder / name).is_file()
        hidden = {path.name for path in folder.iterdir() if path.name.startswith(".")}
        assert hidden <= {".kits_cascade_plan.lock"}, "half-written files"
    assert {step[0] for step in seen} >= {"Dataset221_KidneyCoarse: check", "Dataset223_MassesTumor: preprocess"}


def test_lowres_is_there_though_nnunet_drops_it_and_calls_no_next_stage(planned):
    plans = read_json(folder_of(planned[0], "coarse") / "nnUNetPlans.json")
    lowres = plans["configurations"]["3d_lowres"]
    assert lowres["data_identifier"] == "nnUNetPlans_3d_lowres"
    assert lowres["resampling_fn_data"] == "resample_torch_fornnunet"
    assert "next_stage" not in lowres and "3d_cascade_fullres" not in plans["configurations"]
    assert plans["transpose_forward"] == [0, 1, 2]
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"


def test_the_kidney_channel_stays_zero_and_one(planned):
    folders, *_ = planned
    plans = read_json(folder_of(folders, "masses") / "nnUNetPlans.json")
    assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization", "NoNormalization"]
    data = blosc2.open(str(folder_of(folders, "masses") / "nnUNetPlans_3d_fullres" / "case_00000.b2nd"))[:]
    assert data.shape[0] == 2 and data[1].min() == 0 and data[1].max() == 1 and 0 < data[1].mean() < 0.5
    assert abs(data[0].mean()) > 0


@pytest.mark.parametrize("stage", ["coarse", "masses"])
@pytest.mark.parametrize("spline", [False, True])
def test_preprocessing_gives_what_nnunet_gives(planned, stage, spline):
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folders, *_ = planned
    plans = read_json(folder_of(folders, stage) / "nnUNetPlans.json")
    configuration = "3d_lowres" if stage == "coarse" else "3d_fullres"
    values = plans["configurations"][configuration]
    if spline:
        for what, order, is_seg in (("data", 3, False), ("seg", 1, True)):
            values[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
            values[f"resampling_fn_{what}_kwargs"] = {
                "is_seg": is_seg,
                "order": order,
                "order_z": 0,
                "force_separate_z": None,
            }
    manager = PlansManager(plans)
    raw = folders.raw / folder_of(folders, stage).name
    images = [str(path) for path in sorted((raw / "imagesTr").glob("case_00001_*"))]
    arguments = (images, str(raw / "labelsTr" / "case_00001.nii.gz"), manager, manager.get_configuration(configuration))
    content = read_json(raw / "dataset.json")
    ours, theirs = (
        kind(verbose=False).run_case(*arguments, content) for kind in (LeanPreprocessor, DefaultPreprocessor)
    )
    for mine, other in zip(ours[:2], theirs[:2]):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)
    assert ours[2].keys() == theirs[2].keys()
    for region, places in theirs[2].pop("class_locations").items():
        np.testing.assert_array_equal(ours[2]["class_locations"][region], places)
    ours[2].pop("class_locations")
    for key in ("original_affine", "reoriented_affine"):
        mine, other = (properties["nibabel_stuff"].pop(key) for properties in (ours[2], theirs[2]))
        np.testing.assert_allclose(mine, other)
    for key, value in theirs[2].items():
        assert np.array_equal(np.asarray(ours[2][key], dtype=object), np.asarray(value, dtype=object)), key


@pytest.mark.parametrize("shape", [(9, 14, 11), (31, 8, 20), (20, 21, 22)])
def test_labels_are_resampled_as_nnunet_does(shape):
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    from kits_cascade.data.lean import resampled_labels

    seg = np.random.default_rng(0).integers(-1, 3, (1, 20, 21, 22)).astype(np.int8)
    seg[:, 4:12, 5:15, 3:18] = 2
    theirs = resample_torch_fornnunet(seg, shape, (1, 1, 1), (1, 1, 1), is_seg=True, force_separate_z=False)
    ours = resampled_labels(seg, shape)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_fingerprint_is_what_nnunet_measures(planned):
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    folders, *_ = planned
    found = read_json(folder_of(folders, "masses") / "dataset_fingerprint.json")
    raw = folders.raw / "Dataset223_MassesTumor"
    drawn = []
    for number, name in enumerate(f"case_{n:05d}" for n in range(4)):
        images = [str(raw / "imagesTr" / f"{name}_000{channel}.nii.gz") for channel in (0, 1)]
        label = str(raw / "labelsTr" / f"{name}.nii.gz")
        shape, spacing, values, *_ = DatasetFingerprintExtractor.analyze_case(
            images, label, NibabelIOWithReorient, 10_000
        )
        assert found["shapes_after_crop"][number] == list(shape)
        assert found["spacings"][number] == spacing
        drawn.append(values[0])
    ours = found["foreground_intensity_properties_per_channel"]["0"]
    theirs = np.concatenate(drawn)
    assert ours["mean"] == pytest.approx(theirs.mean(), abs=0.5)
    assert ours["std"] == pytest.approx(theirs.std(), abs=0.5)
    assert ours["percentile_99_5"] == pytest.approx(np.percentile(theirs, 99.5), abs=2)
    assert found["median_relative_size_after_cropping"] == 1.0


def test_reader_agrees_with_nnunets_in_all_orientations(tmp_path):
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    folders = make_source(tmp_path, 6)
    for path in (folders.raw / "Dataset220_KiTS" / "imagesTr").iterdir():
        ours, mine = LeanReader().read_images((path,))
        theirs, other = NibabelIOWithReorient().read_images((str(path),))
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.int16 and mine["spacing"] == other["spacing"]


def test_what_is_done_is_kept_and_what_has_changed_is_done_again(tmp_path, preset):
    folders = make_source(tmp_path, 3)
    derive_stages(folders, jobs=1)
    plan_stages(folders, preset=preset, stages=["222"])
    before = tree(folders.preprocessed)
    report = plan_stages(folders, preset=preset, stages=["222"])
    assert report.preprocessed == {"kidney": 0} and report.unchanged == {"kidney": 3}
    assert tree(folders.preprocessed) == before

    lost = folder_of(folders, "kidney") / "nnUNetPlans_3d_fullres" / "case_00001_seg.b2nd"
    content = blosc2.open(str(lost))[:]
    lost.unlink()
    (folder_of(folders, "kidney") / ".work-nnUNetPlans_3d_fullres").mkdir()  # of a killed run
    assert plan_stages(folders, preset=preset, stages=["222"]).preprocessed == {"kidney": 1}
    # blosc2's files differ from run to run, their content does not.
    np.testing.assert_array_equal(blosc2.open(str(lost))[:], content)
    assert {name for name, data in tree(folders.preprocessed).items() if before.get(name) != data} <= {
        f"Dataset222_KidneyFine/nnUNetPlans_3d_fullres/case_00001{end}" for end in (".b2nd", "_seg.b2nd")
    }

    derive_stages(folders, jobs=1, stages=["222"], margin_mm=4, overwrite=True)
    assert plan_stages(folders, preset=preset, stages=["222"]).preprocessed == {"kidney": 3}
    content = json.loads(Path(preset).read_text())
    content["stages"]["kidney"]["3d_fullres"]["batch_size"] = 3
    write_json(Path(preset), content)
    report = plan_stages(folders, preset=preset, stages=["222"])
    assert report.preprocessed == {"kidney": 0}  # another batch size needs no other data
    assert read_json(report.plans["kidney"])["configurations"]["3d_fullres"]["batch_size"] == 3


def test_case_that_nnunets_check_refuses_is_named(tmp_path, preset):
    folders = make_source(tmp_path, 2)
    derive_stages(folders, jobs=1)
    raw = folders.raw / "Dataset222_KidneyFine"
    (raw / "labelsTr" / "case_00001.nii.gz").write_bytes(
        (folders.raw / "Dataset220_KiTS" / "labelsTr" / "case_00001.nii.gz").read_bytes()
    )
    with pytest.raises(DatasetError, match=r"1 of 2 cases cannot be used: case_00001: .*Unexpected labels"):
        plan_stages(folders, preset=preset, stages=["222"])
    (raw / "labelsTr" / "case_00001.nii.gz").unlink()
    with pytest.raises(DatasetError, match="not complete"):
        plan_stages(folders, preset=preset, stages=["222"])


def test_planning_before_deriving_says_what_to_do(tmp_path):
    with pytest.raises(DatasetError, match="derive-stages"):
        plan_stages(make_source(tmp_path, 1))


def test_all_presets_are_valid_and_complete():
    assert preset_folder() == REPOSITORY / "plans"
    for path in sorted(preset_folder().glob("*.json")):
        preset = load_preset(str(path))
        if "source" in preset.stages:
            continue  # of a system with one network: tests/test_published_systems.py
        assert set(preset.stages) == {"coarse", "kidney", "masses"}
        assert list(preset.stages["coarse"]) == ["3d_lowres"]
        assert preset.stages["coarse"]["3d_lowres"]["resampling_fn_data"] == "resample_torch_fornnunet"
        if path.stem not in ("demo", "shipped"):
            for stage in ("kidney", "masses"):
                values = preset.stages[stage]["3d_fullres"]
                assert values["spacing"] == [0.78125] * 3
                assert values["resampling_fn_data_kwargs"]["order"] == 3
    assert load_preset("default").gpu_memory_gb == 8
    assert load_preset("default", 40).gpu_memory_gb == 40
    assert load_preset("resenc-l").plans_name == "nnUNetResEncUNetLPlans"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("spacing",), [1.0, 0, 1.0], r"spacing: \[1.0, 0, 1.0\] is not three sizes in mm"),
        (("patch_size",), [16, 16], r"patch_size: \[16, 16\] has 2 values; this configuration has 3 axes"),
        (("patch_size",), [16, 16, 15], r"\[16, 16, 15\] must be a multiple of \[2, 2, 2\]"),
        (("batch_size",), 0, "batch_size"),
        (("patches",), 1, "unknown key patches; known are"),
        (("resampling_fn_data",), "resample_fast", "none of|one of"),
        (("architecture", "arch_kwargs", "n_stages"), 3, "the architecture cannot be built"),
        (("architecture", "network_class_name"), "no.such.Net", "the architecture cannot be built"),
    ],
)
def test_wrong_presets_are_refused_with_the_place(planned, tmp_path, place, value, words):
    content = copy.deepcopy(TINY)
    target = content["stages"]["coarse"]["3d_lowres"]
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    write_json(tmp_path / "wrong.json", content)
    with pytest.raises(UsageError, match=words):
        plan_stages(
            planned[0], preset=str(tmp_path / "wrong.json"), stages=["coarse"], preprocess=False, check=check_network
        )


def test_intensities_of_a_preset_take_the_place_of_those_measured(planned):
    plans = read_json(folder_of(planned[0], "kidney") / "nnUNetPlans.json")
    preset = load_preset("shipped")
    changed = apply_preset(plans, preset, "kidney")
    assert changed["foreground_intensity_properties_per_channel"]["0"] == preset.intensities
    assert plans["foreground_intensity_properties_per_channel"]["0"] != preset.intensities


def test_presets_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"unknown preset 'huge'; there are default, demo, .*resenc-l"):
        load_preset("huge")
    with pytest.raises(UsageError, match="8, 24, 40 GB"):
        load_preset("default", 11)
    with pytest.raises(UsageError, match="one size only"):
        load_preset("demo", 24)
    with pytest.raises(UsageError, match="no such preset file"):
        load_preset(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        load_preset(str(tmp_path / "bad.json"))
    write_json(tmp_path / "stage.json", {"stages": {"fine": {}}})
    with pytest.raises(UsageError, match="unknown key fine; known are coarse, kidney, masses"):
        load_preset(str(tmp_path / "stage.json"))


@pytest.mark.slow
def test_presets_come_out_of_the_script_as_they_are(kits23, tmp_path):
    script = REPOSITORY / "plans" / "make_presets.py"
    geometry = str(kits23 / "geometry.csv")
    command = [sys.executable, script, "--geometry", geometry, "-o", tmp_path, "--only", "default-8gb"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "default-8gb.json").read_text() == (REPOSITORY / "plans" / "default-8gb.json").read_text()


def test_preprocessed_properties_can_be_read_by_nnunet(planned):
    folder = folder_of(planned[0], "coarse") / "nnUNetPlans_3d_lowres"
    with (folder / "case_00002.pkl").open("rb") as stream:
        properties = pickle.load(stream)
    assert set(properties) >= {"class_locations", "spacing", "bbox_used_for_cropping", "nibabel_stuff"}


@pytest.mark.slow
def test_nnunets_own_commands_accept_all_four_datasets(tmp_path):
    folders = make_source(tmp_path, 3)
    derive_stages(folders, jobs=1)
    program = Path(sys.executable).parent / "nnUNetv2_plan_and_preprocess"
    # One process, and no preprocessing: starting processes that import torch takes most of the time.
    told = subprocess.run(
        [program, "-d", "220", "221", "222", "223", "--verify_dataset_integrity", "--no_pp", "-npfp", "1"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert told.count("verify_dataset_integrity Done") == 4 and "Error" not in told and "WARNING" not in told
    plans = read_json(folders.preprocessed / "Dataset223_MassesTumor" / "nnUNetPlans.json")
    assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization", "NoNormalization"]
