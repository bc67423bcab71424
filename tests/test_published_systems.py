"""The published systems: each row's network is built and fits its patch; MedicalNet's weights; one step of two."""

import numpy as np
import pytest
import torch

from kits_cascade.data.plans import plan_stages
from kits_cascade.data.presets import load_preset, planned_name
from kits_cascade.errors import MissingExtraError, ModelError, UsageError
from kits_cascade.files import read_json, write_json
from kits_cascade.inference.cascade import Cascade
from kits_cascade.models import checkpoint
from kits_cascade.models.bundle import export_models
from kits_cascade.models.card import About
from kits_cascade.models.choose import resolve_single
from kits_cascade.recipes.train import train
from kits_cascade.systems import SYSTEMS, System, find_system, single_stage
from kits_cascade.training.architecture import build_network, check_network
from kits_cascade.training.base import KitsTrainer
from kits_cascade.training.pretrained import adapt_weights, put_in, read_encoder
from kits_cascade.training.trainer_options import TrainerOptions
from tests.conftest import REPOSITORY
from tests.data.small import make_source
from tests.training.tiny import inline_workers

SINGLE = {system.name: system for system in SYSTEMS if system.is_single}
MONAI = sorted(name for name, system in SINGLE.items() if system.extra)
EXPECTED = (
    "medicalnet-resnet10 medicalnet-resnet50 unet3d nnunet-2mm resunet3d unetr2d unet2d resnet18-unet nnunet "
    "nnunet-resenc-l"
)


def values_of(system):
    """What the preset of a row lays over nnU-Net's plans."""
    return load_preset(system.preset).stages["source"].get(system.stages[0].configuration, {})


def content_of(system):
    return read_json(REPOSITORY / "plans" / f"{system.preset}.json")


def needs(system):
    if system.extra:
        pytest.importorskip("monai", reason="the extra systems is not installed")


def test_the_rows():
    assert set(EXPECTED.split()) == set(SINGLE)
    names = [planned_name(system) for system in SINGLE.values()]
    assert len(set(names)) == len(names), "each system's networks have a folder of their own"
    page = (REPOSITORY / "docs/systems.md").read_text(encoding="utf-8")
    for system in SINGLE.values():
        assert f"`{system.name}`" in page
        assert system.pretrained in page


@pytest.mark.parametrize("name", [name for name in SINGLE if not name.startswith("nnunet") or name == "nnunet-2mm"])
def test_the_network_of_a_row_is_built_and_answers_for_its_patch(name):
    system = SINGLE[name]
    needs(system)
    values = values_of(system)
    check_network(values, name)
    with torch.device("meta"):
        network = build_network(values["architecture"], 1, 3, deep_supervision=False, init=False)
        answer = network(torch.empty((1, 1, *values["patch_size"])))
    assert answer.shape == (1, 3, *values["patch_size"])


@pytest.mark.parametrize("name", SINGLE)
def test_the_training_of_a_row_can_be_read(name):
    options = TrainerOptions.from_plans({"kits_cascade": load_preset(SINGLE[name].preset).training or {}})
    assert options.num_epochs is None or options.num_epochs >= 50


def test_what_was_published_is_in_the_presets():
    plain, tversky = SINGLE["nnunet-2mm"], SINGLE["resnet18-unet"]
    assert values_of(plain)["patch_size"] == [96, 160, 160] and values_of(plain)["batch_size"] == 2
    training = load_preset(plain.preset).training
    assert (training["learning_rate"], training["weight_decay"]) == (0.01, 3e-5)
    assert (training["num_epochs"], training["save_every"]) == (100, 25)
    training = load_preset(tversky.preset).training
    assert (training["loss"], training["patience"], training["num_epochs"]) == ("focal_tversky", 40, 50)
    assert values_of(tversky)["patch_size"] == [128] * 3 and values_of(tversky)["batch_size"] == 8
    window = load_preset("unet2d").intensities
    low, high = window["percentile_00_5"], window["percentile_99_5"]
    assert (low, high) == (-79, 304), "clipped to the window"
    assert [(v - window["mean"]) / window["std"] for v in (low, high)] == [0, 1], "and brought to 0 to 1"


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"kits-cascade\[systems\]"):
        check_network(values_of(SINGLE["unet3d"]), "unet3d")


# --- MedicalNet's weights


def batch_norm(name, channels):
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def medicalnet_shapes(depth):
    """Names and shapes in resnet_10_23dataset.pth (and resnet_18, which has two blocks a layer and no shortcuts)."""
    shapes = {"conv1.weight": (64, 1, 7, 7, 7), **batch_norm("bn1", 64)}
    before = 64
    for layer, channels in enumerate((64, 128, 256, 512), 1):
        for block in range({10: 1, 18: 2}[depth]):
            name = f"layer{layer}.{block}"
            shapes |= {f"{name}.conv1.weight": (channels, before, 3, 3, 3), **batch_norm(f"{name}.bn1", channels)}
            shapes |= {f"{name}.conv2.weight": (channels, channels, 3, 3, 3), **batch_norm(f"{name}.bn2", channels)}
            if before != channels and depth == 10:
                shapes |= {f"{name}.downsample.0.weight": (channels, before, 1, 1, 1)}
                shapes |= batch_norm(f"{name}.downsample.1", channels)
            before = channels
    return shapes


def write_medicalnet(path, depth=10, prefix="module."):
    generator = torch.Generator().manual_seed(depth)
    weights = {f"{prefix}{n}": torch.rand(s, generator=generator) for n, s in medicalnet_shapes(depth).items()}
    torch.save({"state_dict": weights, "epoch": 1}, path)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def resnet10():
    needs(SINGLE["medicalnet-resnet10"])
    return build_network(values_of(SINGLE["medicalnet-resnet10"])["architecture"], 1, 3, deep_supervision=False)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_medicalnets_weights_are_taken_in_full(resnet10, tmp_path, prefix):
    weights = write_medicalnet(tmp_path / "resnet_10_23dataset.pth", prefix=prefix)
    said = put_in(resnet10, read_encoder(tmp_path / "resnet_10_23dataset.pth"), tmp_path / "resnet_10_23dataset.pth")
    assert f"all {len(weights)} tensors taken" in said
    own = resnet10.encoder.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())


def test_a_wrong_file_names_the_tensors_that_do_not_fit(resnet10, tmp_path):
    write_medicalnet(tmp_path / "other.pth", depth=18)
    with pytest.raises(ModelError, match=r"layer1\.1\.conv1\.weight is not in the network") as error:
        put_in(resnet10, read_encoder(tmp_path / "other.pth"), tmp_path / "other.pth")
    assert "other.pth" in str(error.value) and "more" in str(error.value)
    given = {name: torch.zeros(shape) for name, shape in medicalnet_shapes(10).items()}
    given["conv1.weight"] = torch.zeros((64, 3, 7, 7, 7))
    del given["bn1.bias"]
    with pytest.raises(ModelError, match=r"2 tensors do not fit: conv1\.weight has shape \(64, 3, 7, 7, 7\)") as error:
        put_in(resnet10, given, tmp_path / "wrong.pth")
    assert "bn1.bias is not in the file" in str(error.value)


def test_files_that_are_none_are_refused(resnet10, tmp_path):
    for name, content in (("text.pth", b"no weights"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            read_encoder(tmp_path / name)
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pth")
    with pytest.raises(ModelError, match="no table of tensors"):
        read_encoder(tmp_path / "numbers.pth")
    torch.save({"state_dict": System}, tmp_path / "code.pth")
    with pytest.raises(ModelError, match="not a file of weights"):
        read_encoder(tmp_path / "code.pth")
    with pytest.raises(ModelError, match="no such file"):
        read_encoder(tmp_path / "nowhere.pth")
    with pytest.raises(ModelError, match="has no encoder"):
        put_in(torch.nn.Linear(1, 1), {}, tmp_path / "any.pth")


def test_the_recipe_starts_folds_from_the_weights(tmp_path):
    folders = make_source(tmp_path, 2)
    file = tmp_path / "resnet_10_23dataset.pth"
    row = find_system("medicalnet-resnet10")
    steps = train(folders, system=row, folds=[0], devices=["cpu"], pretrained=file, dry_run=True).steps
    assert [step.title.partition(": ")[2] for step in steps] == [
        "plan and preprocess",
        "starting weights",
        "train fold 0 (KitsTrainer)",
    ]
    assert steps[1].argv[:4] == ("kits-cascade", "models", "adapt", str(file))
    written = str(folders.preprocessed / "Dataset220_KiTS" / "medicalnetResnet10Plans_pretrained.pth")
    assert written in steps[1].argv
    assert " ".join(steps[2].argv).endswith(f"-p medicalnetResnet10Plans -pretrained_weights {written} -device cpu")
    with pytest.raises(UsageError, match=r"unet3d takes no pretrained weights.*medicalnet-resnet10"):
        train(folders, system=find_system("unet3d"), pretrained=file, devices=["cpu"], dry_run=True)


# --- one step of two of them

SMALL = {"learning_rate": 1e-3, "num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}


def small_preset(path, name):
    """The row's preset with a small patch, for a processor."""
    system = SINGLE[name]
    content = content_of(system)
    configuration = system.stages[0].configuration
    axes = 2 if configuration == "2d" else 3
    values = content["stages"]["source"][configuration]
    values |= {"patch_size": [32] * axes, "batch_size": 2, "spacing": [3.0] * axes}
    if name == "unetr2d":
        small = {"img_size": [32, 32], "hidden_size": 48, "mlp_dim": 96, "num_heads": 4, "feature_size": 4}
        values["architecture"]["arch_kwargs"] |= small
    content["training"] |= SMALL
    write_json(path, content)
    return System(name, "small", "", single_stage(configuration), str(path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medicalnet-resnet10", "unetr2d"])
def test_a_system_is_trained_for_a_step_and_predicts(tmp_path, monkeypatch, name):
    needs(SINGLE[name])
    system = small_preset(tmp_path / "small.json", name)
    (stage,) = system.stages
    folders = make_source(tmp_path, 3)
    report = plan_stages(folders, preset=system.preset, known=system.stages, jobs=1, check=check_network)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # no workers; the planner takes it for a number of threads
    plans = read_json(report.plans["source"])
    dataset = read_json(folders.raw / stage.dataset / "dataset.json")
    trainer = KitsTrainer(plans, stage.configuration, 0, dataset, torch.device("cpu"))
    if SINGLE[name].pretrained:
        weights = write_medicalnet(tmp_path / "resnet_10_23dataset.pth")
        start = tmp_path / "start.pth"
        adapt_weights(tmp_path / "resnet_10_23dataset.pth", report.plans["source"], stage.configuration, start)
        from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

        trainer.initialize()
        load_pretrained_weights(trainer.network, str(start))
        taken = trainer.network.encoder.state_dict()
        assert all(torch.equal(taken[key], tensor) for key, tensor in weights.items())
    with inline_workers():
        trainer.run_training()
    assert (tmp_path / "nnUNet_results").is_dir() and list(folders.results.rglob("training_progress.json"))

    model = resolve_single(stage, results=folders.results, pattern=planned_name(system))
    image = folders.raw / stage.dataset / "imagesTr" / "case_00000_0000.nii.gz"
    prediction = Cascade(model, device="cpu", accept_values=True)(image)
    assert prediction.labels.shape == prediction.loaded.volume.shape
    assert set(np.unique(prediction.labels)) <= {0, 1, 2, 3}
    bundle = export_models(model, tmp_path / "networks.zip", about=About(system=name))
    assert np.array_equal(Cascade(bundle, device="cpu", accept_values=True)(image).labels, prediction.labels)
