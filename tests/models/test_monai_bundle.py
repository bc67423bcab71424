"""A network as a MONAI bundle, loaded and run by MONAI itself: its logits and labels against ours."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.errors import ModelError
from kits_cascade.models.choose import resolve_models
from kits_cascade.models.monai_bundle import export_monai
from kits_cascade.stages import MASSES_STAGE, STAGES
from kits_cascade.training.architecture import build_network
from tests.models.test_models import ARCHITECTURE, LABELS

PATCH = [8, 16, 16]
SPACING = [4.0, 2.0, 2.0]
INTENSITIES = {"mean": 50.0, "std": 40.0, "percentile_00_5": -60.0, "percentile_99_5": 160.0}
SIZES = {"features_per_stage": [4, 8], "kernel_sizes": [[3, 3, 3]] * 2, "strides": [[1, 1, 1], [2, 2, 2]]}
MORE = {"n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True, "dropout_op_kwargs": None}
NORM = {"norm_op_kwargs": {"eps": 1e-5, "affine": True}}
RESAMPLING = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}


def architecture():
    return ARCHITECTURE | {"arch_kwargs": ARCHITECTURE["arch_kwargs"] | SIZES | MORE | NORM}


def train(results, stage):
    """A network with drawn weights, as nnU-Net leaves one."""
    folder = results / stage.dataset / f"{stage.trainer}__nnUNetPlans__{stage.configuration}"
    (folder / "fold_0").mkdir(parents=True)
    second = stage.key == "masses"
    configuration = {
        "architecture": architecture(), "patch_size": PATCH, "spacing": SPACING, "batch_size": 2,
        "normalization_schemes": ["CTNormalization", "NoNormalization"][: 1 + second],
        "use_mask_for_norm": [False, False][: 1 + second], "data_identifier": "x", "batch_dice": True,
        "preprocessor_name": "DefaultPreprocessor",
    } | {f"resampling_fn_{what}": "resample_torch_fornnunet" for what in ("data", "seg", "probabilities")} | {
        f"resampling_fn_{what}_kwargs": RESAMPLING | {"is_seg": what == "seg"}
        for what in ("data", "seg", "probabilities")
    }  # fmt: skip
    plans = {
        "dataset_name": stage.dataset, "plans_name": "nnUNetPlans", "label_manager": "LabelManager",
        "image_reader_writer": "NibabelIOWithReorient", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {stage.configuration: configuration},
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES, "1": INTENSITIES},
    }  # fmt: skip
    if second:
        plans["kits_cascade"] = {"prior_channels": [1]}
    dataset = {"labels": LABELS[stage.key], "channel_names": stage.channels, "file_ending": ".nii.gz"}
    if second:
        dataset["regions_class_order"] = [1, 2]
    torch.manual_seed(0)
    network = build_network(architecture(), 1 + second, 2, deep_supervision=False)
    checkpoint = {
        "network_weights": network.state_dict(), "trainer_name": stage.trainer,
        "init_args": {"configuration": stage.configuration, "fold": 0}, "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    results = tmp_path_factory.mktemp("nnunet") / "nnUNet_results"
    for stage in STAGES:
        train(results, stage)
    return resolve_models(results)


def parser_of(folder, **given):
    monai = pytest.importorskip("monai.bundle", reason="no monai here: pip install 'kits-cascade[systems]'")
    parser = monai.ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser.read_meta(folder / "configs" / "metadata.json")
    for name, value in {"bundle_root": folder, **given}.items():
        parser[name] = str(value)
    parser["device"] = "$torch.device('cpu')"
    return parser


def our_labels(model, channels, spacing):
    from kits_cascade.inference.nnunet.engines import as_nnunet
    from kits_cascade.inference.nnunet.stage import StageNetwork
    from kits_cascade.inference.nnunet.tiles import TileOptions

    network = StageNetwork(model, as_nnunet("cpu"), TileOptions(0.5, False, None))
    prepared = network.prepare(channels, spacing, {})
    return network.labels(network.resampled_logits(network.logits(prepared, None), prepared), prepared)


def test_the_folder_is_a_bundle(models, tmp_path):
    folders = export_monai(models, tmp_path / "out")
    assert [folder.name for folder in folders] == ["coarse", "kidney", "masses"]
    for folder in folders:
        metadata = json.loads((folder / "configs" / "metadata.json").read_text())
        assert {"version", "monai_version", "network_data_format", "required_packages_version"} <= metadata.keys()
        assert "not for diagnosis" in (folder / "docs" / "README.md").read_text()
    with pytest.raises(ModelError, match="--overwrite"):
        export_monai(models, tmp_path / "out")
    assert export_monai(models, tmp_path / "out", overwrite=True) == folders


def test_the_command(models, tmp_path):
    place = models.coarse.folder.parents[2]
    told = CliRunner().invoke(app, ["models", "export", str(tmp_path / "o"), "--monai", "--nnunet-dir", str(place)])
    assert told.exit_code == 0, told.output
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["coarse", "kidney", "masses"]


def test_monai_builds_the_network_and_gets_the_same_logits(models, tmp_path):
    for model, folder in zip(models.all, export_monai(models, tmp_path)):
        network = parser_of(folder).get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
        ours = build_network(architecture(), 1 + (model.key == "masses"), 2, deep_supervision=False).eval()
        ours.load_state_dict(torch.load(model.checkpoints[0], weights_only=True)["network_weights"])
        tile = torch.randn(1, 1 + (model.key == "masses"), *PATCH, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            assert torch.equal(network(tile), ours(tile))


def test_monais_own_reader_of_nnunet_takes_it(models, tmp_path):
    nnunet = pytest.importorskip("monai.apps.nnunet.nnunet_bundle", reason="this monai reads no nnU-Net")
    folder = export_monai(models, tmp_path)[0]
    files = [str(folder / "models" / name) for name in ("plans.json", "dataset.json")]
    network = nnunet.get_network_from_nnunet_plans(*files, models.coarse.configuration)
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))


# One tile, since MONAI lays several otherwise than nnU-Net. (z, y, x) in mm, as the network sees it, and finer.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("number", "finer"), [(0, 1), (0, 2), (2, 2)])
def test_monai_runs_it_and_gets_the_same_labels(models, tmp_path, number, finer):
    pytest.importorskip("ignite", reason="no ignite here: pip install pytorch-ignite")
    import nibabel as nib
    from scipy import ndimage

    model, folder = models.all[number], export_monai(models, tmp_path / "out")[number]
    noise = ndimage.gaussian_filter(
        np.random.default_rng(3).standard_normal([size * finer for size in PATCH]), (1, 2, 2)
    )
    spacing = tuple(size / finer for size in SPACING)
    ct = (50 + 60 * noise / noise.std()).astype(np.float32)
    channels = [ct, (ndimage.gaussian_filter(noise, 2) > 0).astype(np.uint8)][: 1 + (model.key == "masses")]
    affine = np.diag([*spacing[::-1], 1.0]) @ np.diag([-1, -1, 1, 1])
    (tmp_path / "in").mkdir()
    for channel, array in enumerate(channels):
        stored = np.ascontiguousarray(array.transpose(2, 1, 0)[::-1, ::-1])
        nib.save(nib.Nifti1Image(stored, affine), tmp_path / "in" / f"a_{channel:04d}.nii.gz")
    parser_of(folder, dataset_dir=tmp_path / "in", output_dir=tmp_path / "labels").get_parsed_content("run")
    written = nib.load(next((tmp_path / "labels").iterdir()))
    theirs = np.asarray(written.dataobj)[::-1, ::-1].transpose(2, 1, 0)
    ours = our_labels(model, channels, spacing)
    assert written.affine == pytest.approx(affine, abs=1e-4)
    # At the corners of a lone tile nnU-Net's weights are next to nothing in half precision, and its logits noise.
    theirs, ours = (labels[tuple(slice(n // 6, -(n // 6)) for n in labels.shape)] for labels in (theirs, ours))
    assert len(np.unique(ours)) > 1  # there is something to compare
    assert (theirs == ours).mean() >= 0.99


def test_what_a_bundle_cannot_tell_is_refused(models, tmp_path):
    plans = models.coarse.folder / "plans.json"
    before = plans.read_text()
    try:
        plans.write_text(before.replace('"CTNormalization"', '"ZScoreNormalization"'))
        with pytest.raises(ModelError, match="ZScoreNormalization"):
            export_monai(models, tmp_path)
        assert not any(tmp_path.iterdir())
    finally:
        plans.write_text(before)
    assert MASSES_STAGE.key == models.all[2].key
