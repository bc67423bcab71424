import hashlib
import io
import json
import os
import pickle
import pydoc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.errors import ModelError, UsageError
from kits_cascade.models.bundle import bundle_path, export_models, import_models
from kits_cascade.models.checkpoint import check_plans, load_checkpoint, require_modules
from kits_cascade.models.choose import resolve_models
from kits_cascade.models.network import MANIFEST, describe_networks
from kits_cascade.stages import COARSE, KIDNEY_STAGE, MASSES_STAGE, STAGES

LABELS = {
    "coarse": COARSE.labels,
    "kidney": KIDNEY_STAGE.labels,
    "masses": MASSES_STAGE.labels,
    "MassTrainer": {"background": 0, "masses": 1},
    "TumorTrainer": {"background": 0, "tumor": 1},
}
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


def plans(stage):
    return {"plans_name": "nnUNetPlans", "configurations": {stage.configuration: {"architecture": ARCHITECTURE}}}


def checkpoint(trainer, configuration, fold, seed=0):
    """As nnUNetTrainer.save_checkpoint makes it (see the test that asks nnU-Net itself)."""
    weight = torch.from_numpy(np.random.default_rng(seed).random((20, 20)).astype(np.float32))
    return {
        "network_weights": {"a.weight": weight},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(200, 200)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5)], "dice_per_class_or_region": [[np.float64(0.5)]], "lrs": [0.1]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 4,
        "init_args": {"configuration": configuration, "fold": fold, "plans": {"big": 1}, "device": torch.device("cpu")},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def train(results, stage, trainer=None, folds=(0,), plan="nnUNetPlans", name="checkpoint_final.pth"):
    trainer = trainer or stage.trainer
    folder = results / stage.dataset / f"{trainer}__{plan}__{stage.configuration}"
    for fold in folds:
        (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint(trainer, stage.configuration, fold), folder / f"fold_{fold}" / name)
    labels = LABELS.get(trainer, LABELS[stage.key])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": stage.channels}))
    (folder / "plans.json").write_text(json.dumps(plans(stage)))
    return folder


@pytest.fixture
def results(tmp_path):
    for stage in STAGES:
        train(tmp_path / "results", stage, folds=(0, 1))
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- which networks ------------------------------------------------------------------------------------------------


def test_what_is_trained_is_found(results, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(results))
    models = resolve_models()
    assert [(m.key, m.folds, m.trainer) for m in models.all] == [
        ("coarse", (0, 1), "nnUNetTrainer"),
        ("kidney", (0, 1), "SurfaceLossTrainer"),
        ("masses", (0, 1), "SurfaceLossTrainer"),
    ]
    assert models.masses[0].outputs == ("masses", "tumor")
    assert models.summary()[0] == "coarse: Dataset221_KidneyCoarse/nnUNetTrainer__nnUNetPlans__3d_lowres, folds 0 1"
    assert resolve_models(folds=[1]).kidney.checkpoints[0].parent.name == "fold_1"
    described = describe_networks(models)
    assert (
        described[0]["sha256"]["fold_0/checkpoint_final.pth"]
        == hashlib.sha256(models.coarse.checkpoints[0].read_bytes()).hexdigest()
    )


def test_several_are_an_error_that_lists_them_and_can_be_chosen_from(results):
    train(results, KIDNEY_STAGE, "nnUNetTrainer")
    train(results, KIDNEY_STAGE, "SurfaceLossTrainer", plan="nnUNetResEncUNetLPlans")
    with pytest.raises(ModelError) as caught:
        resolve_models(results=results)
    for part in ("kidney", "nnUNetTrainer__nnUNetPlans__3d_fullres", "ResEncUNetL", "--model kidney="):
        assert part in str(caught.value)
    assert resolve_models(results=results, choose={"kidney": "nnUNetTrainer"}).kidney.trainer == "nnUNetTrainer"
    chosen = resolve_models(results=results, choose={"kidney": "*ResEncUNetLPlans*"})
    assert chosen.kidney.plans == "nnUNetResEncUNetLPlans"
    with pytest.raises(ModelError, match=r"matches 'x'; there is .*nnUNetTrainer__"):
        resolve_models(results=results, choose={"kidney": "x"})


def test_a_pair_of_networks_for_the_masses(tmp_path):
    for stage in (COARSE, KIDNEY_STAGE):
        train(tmp_path, stage)
    train(tmp_path, MASSES_STAGE, "MassTrainer")
    with pytest.raises(ModelError, match=r"one for each \(MassTrainer and TumorTrainer\); there is MassTrainer"):
        resolve_models(results=tmp_path)
    train(tmp_path, MASSES_STAGE, "TumorTrainer")
    assert [m.outputs for m in resolve_models(results=tmp_path).masses] == [("masses",), ("tumor",)]
    train(tmp_path, MASSES_STAGE)
    with pytest.raises(ModelError, match=r"SurfaceLossTrainer__.*; MassTrainer__.* \+ TumorTrainer__"):
        resolve_models(results=tmp_path)
    assert len(resolve_models(results=tmp_path, choose={"masses": "MassTrainer,TumorTrainer"}).masses) == 2
    assert len(resolve_models(results=tmp_path, choose={"masses": "SurfaceLossTrainer"}).masses) == 1


def test_what_is_missing_is_named(results, tmp_path):
    with pytest.raises(ModelError, match=r"fold 3 has no checkpoint_final.pth; trained folds: 0 1"):
        resolve_models(results=results, folds=[0, 3])
    with pytest.raises(ModelError, match=r"no trained network for the coarse stage.*nnUNetv2_train 221"):
        resolve_models(results=tmp_path, shipped=False)
    with pytest.raises(ModelError, match="no such file"):
        resolve_models(tmp_path / "nowhere.zip")
    for path in results.glob("Dataset222*/*/fold_*/checkpoint_final.pth"):
        path.rename(path.with_name("checkpoint_best.pth"))
    with pytest.raises(ModelError, match=r"--checkpoint checkpoint_best\.pth"):
        resolve_models(results=results)
    (results / "Dataset221_Other").mkdir()
    with pytest.raises(ModelError, match="several data sets with id 221"):
        resolve_models(results=results)


def test_other_ids_and_a_results_folder_as_source(results):
    moved = results / "Dataset321_Mine"
    (results / "Dataset221_KidneyCoarse").rename(moved)
    assert resolve_models(results, dataset_ids={"coarse": 321}).coarse.dataset == "Dataset321_Mine"


# --- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_as_nnunet_writes_it_is_read(tmp_path, monkeypatch):
    from nnunetv2.training.logging.nnunet_logger import MetaLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    logger = MetaLogger(str(tmp_path), False)
    # What nnU-Net logs in one epoch: means by numpy, times, learning rates.
    for key, value in {
        "mean_fg_dice": np.nanmean([0.5, 0.25]),
        "dice_per_class_or_region": [np.float64(0.5), np.float64(0.25)],
        "train_losses": np.mean([np.float32(1), np.float32(2)]),
        "val_losses": np.mean(np.array([1, 2], np.float32)),
        "lrs": 0.01,
        "epoch_start_timestamps": 1.0,
        "epoch_end_timestamps": 2.0,
    }.items():
        logger.log(key, value, 0)
    network = torch.nn.Conv3d(1, 2, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    network(torch.zeros(1, 1, 3, 3, 3)).sum().backward()
    optimizer.step()
    trainer = SimpleNamespace(
        local_rank=0,
        disable_checkpointing=False,
        is_ddp=False,
        network=network,
        optimizer=optimizer,
        grad_scaler=torch.amp.GradScaler("cpu"),
        logger=logger,
        _best_ema=np.float64(0.375),
        current_epoch=0,
        my_init_kwargs={"plans": plans(COARSE), "configuration": "3d_lowres", "fold": 0, "device": torch.device("cpu")},
        inference_allowed_mirroring_axes=(0, 1, 2),
    )
    nnUNetTrainer.save_checkpoint(trainer, str(tmp_path / "c.pth"))
    content = load_checkpoint(tmp_path / "c.pth")
    assert torch.equal(content["network_weights"]["bias"], network.bias)
    assert content["logging"]["mean_fg_dice"] == [0.375]
    assert content["init_args"]["configuration"] == "3d_lowres"


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def bombs(mark):
    base = checkpoint("nnUNetTrainer", "3d_lowres", 0)
    yield "in the log", {**base, "logging": Bomb(mark)}
    yield "in the weights", {**base, "network_weights": {"a": Bomb(mark)}}
    yield "instead of all", Bomb(mark)


@pytest.mark.parametrize("number", range(3))
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path, number):
    mark = tmp_path / "mark"
    _, content = list(bombs(mark))[number]
    path = tmp_path / "c.pth"
    torch.save(content, path)
    with pytest.raises(ModelError, match="not a checkpoint that is safe to load") as caught:
        load_checkpoint(path)
    assert not mark.exists()
    assert "weights_only=False" not in str(caught.value)
    with path.open("rb") as stream:
        torch.load(stream, weights_only=False)  # the bomb does work
    assert mark.exists()


def test_other_bad_checkpoints(tmp_path):
    path = tmp_path / "c.pth"
    mark = tmp_path / "mark"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match="not a checkpoint as torch writes it"):
        load_checkpoint(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ModelError, match="no network_weights"):
        load_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))
    with pytest.raises(ModelError, match="far more than its own size"):
        load_checkpoint(path)
    with pytest.raises(ModelError, match="no such file"):
        load_checkpoint(tmp_path / "none.pth")
    assert not mark.exists()


HOSTILE_NAMES = [
    "os.system",
    "subprocess.Popen",
    "torch.nn.modules.module.os.system",
    "torch.nn.functional.importlib.import_module",
    "torch.hub.load",
    "kits_cascade.data.download",
    7,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("where", ["network", "layer"])
def test_plans_may_name_networks_and_layers_only(tmp_path, name, where):
    content = plans(COARSE)
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(content))
    check_plans(path)
    architecture = json.loads(json.dumps(ARCHITECTURE))
    if where == "network":
        architecture["network_class_name"] = name
    else:
        architecture["arch_kwargs"]["nonlin"] = name
        architecture["arch_kwargs"]["nonlin_kwargs"] = {"command": f"mkdir {tmp_path / 'mark'}"}
    content["configurations"]["3d_lowres"]["architecture"] = architecture
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="refused"):
        check_plans(path)
    with pytest.raises(ModelError, match="refused"):
        require_modules(architecture, path)  # whatever a look at the names alone has let pass
    assert not (tmp_path / "mark").exists()


def test_plans_as_nnunet_writes_them_pass(tmp_path):
    for network in ("unet.PlainConvUNet", "unet.ResidualEncoderUNet"):
        content = plans(COARSE)
        content["configurations"]["3d_lowres"]["architecture"] = {
            **ARCHITECTURE,
            "network_class_name": f"dynamic_network_architectures.architectures.{network}",
        }
        content["configurations"]["2d"] = {"inherits_from": "3d_lowres"}
        (tmp_path / "plans.json").write_text(json.dumps(content))
        check_plans(tmp_path / "plans.json")


# --- bundles -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(results, tmp_path):
    return export_models(resolve_models(results=results), tmp_path / "models.zip")


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_export_and_import(bundle, results, tmp_path):
    assert export_models(resolve_models(results=results), tmp_path / "again").read_bytes() == bundle.read_bytes()
    original = sum(p.stat().st_size for p in results.rglob("*.pth"))
    assert bundle.stat().st_size < original / 5  # the optimizer's state stays at home
    folders = import_models(bundle, tmp_path / "new", manifest=False)
    assert len(folders) == 3
    assert files_below(tmp_path / "new") == files_below(results)
    small = load_checkpoint(folders[0] / "fold_1" / "checkpoint_final.pth")
    assert torch.equal(small["network_weights"]["a.weight"], checkpoint("", "", 0)["network_weights"]["a.weight"])
    # What nnU-Net's own predictor reads.
    assert small["trainer_name"] == "nnUNetTrainer"
    assert small["init_args"] == {"configuration": "3d_lowres", "fold": 1}
    assert small["inference_allowed_mirroring_axes"] == (0, 1, 2)
    assert "optimizer_state" not in small
    assert resolve_models(results=tmp_path / "new").coarse.folds == (0, 1)


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_a_bundle_is_a_source_of_models(bundle, tmp_path, form):
    source = bundle
    if form == "folder":
        source = tmp_path / "unpacked"
        import_models(bundle, source)
    models = resolve_models(source, folds=[1])
    assert [m.folds for m in models.all] == [(1,)] * 3
    assert resolve_models(source).kidney.folds == (0, 1)
    assert len(describe_networks(models)) == 3
    with pytest.raises(ModelError, match="has the folds 0 1 only"):
        resolve_models(source, folds=[4])
    changed = models.coarse.checkpoints[0]
    content = bytearray(changed.read_bytes())
    content[-30] ^= 255
    changed.write_bytes(content)
    with pytest.raises(ModelError, match="checksum"):
        describe_networks(resolve_models(source))


@pytest.mark.parametrize(
    "asked",
    [{"choose": {"kidney": "KidneyTrainer"}}, {"checkpoint": "checkpoint_best.pth"}, {"dataset_ids": {"coarse": 9}}],
)
def test_nothing_but_folds_is_chosen_of_a_bundle(bundle, asked):
    with pytest.raises(UsageError, match="is a bundle"):
        resolve_models(bundle, **asked)
    assert resolve_models(bundle, dataset_ids={"coarse": 221, "kidney": 222, "masses": 223})


def test_a_pair_and_other_ids_travel_too(tmp_path):
    for stage in (COARSE, KIDNEY_STAGE):
        train(tmp_path / "r", stage)
    for trainer in ("MassTrainer", "TumorTrainer"):
        train(tmp_path / "r", MASSES_STAGE, trainer)
    (tmp_path / "r" / "Dataset221_KidneyCoarse").rename(tmp_path / "r" / "Dataset321_KidneyCoarse")
    path = export_models(resolve_models(tmp_path / "r", dataset_ids={"coarse": 321}), tmp_path / "b.zip")
    models = resolve_models(path)
    assert [m.outputs for m in models.masses] == [("masses",), ("tumor",)]
    assert models.coarse.dataset == "Dataset321_KidneyCoarse"


def test_import_replaces_nothing_unasked(bundle, tmp_path):
    target = tmp_path / "new"
    import_models(bundle, target)
    import_models(bundle, target)  # the same again
    own = target / "Dataset222_KidneyFine" / "SurfaceLossTrainer__nnUNetPlans__3d_fullres" / "plans.json"
    own.write_text("{}")
    with pytest.raises(ModelError, match=r"holds other networks of the same name: Dataset222.*--overwrite"):
        import_models(bundle, target)
    assert own.read_text() == "{}"
    import_models(bundle, target, overwrite=True)
    assert own.read_text() != "{}"


def test_where_nothing_can_be_written(bundle, results, tmp_path, monkeypatch):
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(ModelError, match=r"cannot be written .*another place"):
        export_models(resolve_models(results=results), taken / "x.zip")
    with pytest.raises(ModelError, match=r"cannot be written .*--to"):
        import_models(bundle, taken / "x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(taken))
    with pytest.raises(ModelError, match=r"cannot be written .*XDG_CACHE_HOME"):
        resolve_models(bundle)


def test_bundle_names():
    assert bundle_path(Path("a")) == bundle_path(Path("a.zip")) == Path("a.zip")


@pytest.mark.slow
def test_nnunets_own_predictor_reads_what_was_imported(tmp_path):
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from tests.inference import handmade

    architecture = handmade.unet_plan([4, 8])
    named, arguments = architecture["_kw_requires_import"], architecture["arch_kwargs"]
    located = {key: pydoc.locate(value) if key in named and value else value for key, value in arguments.items()}
    for stage in STAGES:
        folder = handmade.write_model(tmp_path / "results", stage)
        content = json.loads((folder / "plans.json").read_text())
        content["configurations"][stage.configuration]["architecture"] = architecture
        (folder / "plans.json").write_text(json.dumps(content))
        network = PlainConvUNet(len(stage.channels), num_classes=2, deep_supervision=True, **located)
        path = folder / "fold_0" / "checkpoint_final.pth"
        torch.save({**load_checkpoint(path), "network_weights": network.state_dict()}, path)
    path = export_models(resolve_models(results=tmp_path / "results"), tmp_path / "m.zip")
    for folder in import_models(path, tmp_path / "new"):
        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
        predictor.initialize_from_trained_model_folder(str(folder), (0,))
        assert predictor.trainer_name == "nnUNetTrainer"
        assert predictor.allowed_mirroring_axes == (0,)


# --- hostile bundles -----------------------------------------------------------------------------------------------


def rebuilt(bundle, path, change=lambda name, data: data, extra=(), manifest=lambda content: None, relist=True):
    """A copy of a bundle, changed and with a manifest that fits again, as an attacker would make it."""
    with zipfile.ZipFile(bundle) as archive:
        content = json.loads(archive.read(MANIFEST))
        data = {name: change(name, archive.read(name)) for name in content["files"]}
    with zipfile.ZipFile(path, "w") as archive:
        for name, blob in data.items():
            archive.writestr(name, blob)
        for info, blob in extra:
            archive.writestr(info, blob)
            name = info if isinstance(info, str) else info.filename
            if relist:
                data[name] = blob if isinstance(blob, bytes) else blob.encode()
        content["files"] = {
            name: {"sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob)} for name, blob in data.items()
        }
        manifest(content)
        archive.writestr(MANIFEST, json.dumps(content))
    return path


def link_entry(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


FOLDER = "Dataset221_KidneyCoarse/nnUNetTrainer__nnUNetPlans__3d_lowres"
ATTACKS = {
    "path up": [("../evil.pth", b"x")],
    "path up inside": [(f"{FOLDER}/fold_0/../../../../evil.pth", b"x")],
    "absolute path": [("/tmp/kits-cascade-evil.pth", b"x")],
    "backslashes": [("..\\..\\evil.pth", b"x")],
    "drive letter": [("C:/a/b/evil.pth", b"x")],
    "symbolic link": [(link_entry(f"{FOLDER}/fold_0/link.pth"), "/etc/passwd")],
    "link to a folder": [(link_entry(f"{FOLDER}/fold_0/link.pth"), "../../..")],
    "another kind of file": [(f"{FOLDER}/fold_0/evil.py", b"x")],
    "python beside plans": [(f"{FOLDER}/evil.pth.py", b"x")],
    "hidden file": [(f"{FOLDER}/fold_0/.evil.pth", b"x")],
    "a file twice": [(f"{FOLDER}/plans.json", b"{}")],
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("relist", [True, False])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_nothing_is_written_outside(bundle, tmp_path, attack, relist):
    hostile = rebuilt(bundle, tmp_path / "hostile.zip", extra=ATTACKS[attack], relist=relist)
    before = files_below(tmp_path)
    for call in (lambda: import_models(hostile, tmp_path / "a" / "b" / "target"), lambda: resolve_models(hostile)):
        with pytest.raises(ModelError):
            call()
    assert files_below(tmp_path) == before
    assert not os.path.exists("/tmp/kits-cascade-evil.pth")


def test_code_in_a_bundle_is_not_run(bundle, tmp_path):
    mark = tmp_path / "mark"
    stream = io.BytesIO()
    torch.save({**checkpoint("nnUNetTrainer", "3d_lowres", 0), "logging": Bomb(mark)}, stream)
    hostile_plans = plans(COARSE)
    architecture = json.loads(json.dumps(ARCHITECTURE))
    architecture["arch_kwargs"] |= {"nonlin": "os.mkdir", "nonlin_kwargs": {"path": str(mark)}}
    hostile_plans["configurations"]["3d_lowres"]["architecture"] = architecture
    for name, blob in {
        f"{FOLDER}/fold_0/checkpoint_final.pth": stream.getvalue(),
        f"{FOLDER}/plans.json": json.dumps(hostile_plans).encode(),
    }.items():
        hostile = rebuilt(bundle, tmp_path / "h.zip", lambda n, data, name=name, blob=blob: blob if n == name else data)
        with pytest.raises(ModelError):
            import_models(hostile, tmp_path / "target")
        with pytest.raises(ModelError):
            resolve_models(hostile)
        assert files_below(tmp_path / "target") == []
        assert not mark.exists()


def _set(path, value):
    def change(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = value

    return change


MANIFESTS = {
    "another format": (_set(["format"], "zip"), "not a bundle"),
    "a later version": (_set(["version"], 2), "update it"),
    "no stages": (lambda content: content.pop("stages"), "incomplete"),
    "a list": (_set(["files"], []), "incomplete|differ"),
    "negative size": (_set(["files", f"{FOLDER}/plans.json", "bytes"], -1), "impossible"),
    "huge size": (_set(["files", f"{FOLDER}/plans.json", "bytes"], 1 << 60), "impossible"),
    "wrong checksum": (_set(["files", f"{FOLDER}/plans.json", "sha256"], "0" * 64), "damaged"),
    "folder outside": (_set(["stages", 0, "folder"], "../../etc"), "lacks"),
    "fold outside": (_set(["stages", 0, "folds"], ["../../.."]), "lacks"),
    "two stages only": (lambda content: content["stages"].pop(), "whole system"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_are_not_believed(bundle, tmp_path, kind):
    change, message = MANIFESTS[kind]
    hostile = rebuilt(bundle, tmp_path / "h.zip", manifest=change)
    with pytest.raises(ModelError, match=message):
        resolve_models(hostile)


def test_broken_zips_and_bombs(bundle, tmp_path):
    path = tmp_path / "x.zip"
    for content in (b"", b"hello", bundle.read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(ModelError):
            import_models(path, tmp_path / "t")
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ModelError):
        import_models(path, tmp_path / "t")
    huge = b"0" * 100_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, b'{"format": "' + huge + b'"}')
    with pytest.raises(ModelError, match="larger than"):
        import_models(path, tmp_path / "t")
    deep = b'{"a":' * 100_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, deep)
    with pytest.raises(ModelError, match="not valid JSON"):
        import_models(path, tmp_path / "t")
    assert files_below(tmp_path / "t") == []


def test_the_commands(results, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(results))

    def run(*arguments):
        return CliRunner().invoke(app, ["models", *map(str, arguments)])

    listed = run("list")
    assert listed.exit_code == 0, listed.output
    assert listed.output.count("Dataset222_KidneyFine/SurfaceLossTrainer__nnUNetPlans__3d_fullres") == 2
    assert run("export", tmp_path / "both", "-f", "0", "1").exit_code == 0
    assert run("export", tmp_path / "m", "-f", "0").exit_code == 0
    assert isinstance(run("export", tmp_path / "m").exception, UsageError)  # it is there already
    assert run("import", tmp_path / "m.zip", "--to", tmp_path / "new").exit_code == 0
    assert run("list", "-m", tmp_path / "new").output.count("folds 0\n") == 3
    (tmp_path / "m.zip").write_bytes(b"hello")
    assert isinstance(run("import", tmp_path / "m.zip", "--to", tmp_path / "other").exception, ModelError)
    train(results, KIDNEY_STAGE, "nnUNetTrainer")
    listed = run("list")
    assert listed.exit_code == 1
    assert "several trained networks" in listed.output
