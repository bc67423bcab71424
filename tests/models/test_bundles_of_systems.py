"""Bundles of systems with one network: written, read, and told apart from the cascade's."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.data.presets import planned_name
from kits_cascade.errors import ModelError, UsageError
from kits_cascade.models.bundle import export_models, import_models
from kits_cascade.models.card import About
from kits_cascade.models.choose import resolve_models, resolve_single
from kits_cascade.models.network import SingleModel
from kits_cascade.systems import find_system
from tests.models import test_models

SYSTEM = find_system("unet2d")
(STAGE,) = SYSTEM.stages


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(test_models.LABELS, STAGE.key, STAGE.labels)


@pytest.fixture
def results(tmp_path):
    trainer, plans, _ = planned_name(SYSTEM).split("__")
    test_models.train(tmp_path / "results", STAGE, trainer, folds=(0, 1), plan=plans)
    return tmp_path / "results"


@pytest.fixture
def bundle(results, tmp_path):
    found = resolve_single(STAGE, results=results)
    return export_models(found, tmp_path / "unet2d.zip", about=About(system=SYSTEM.name))


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_a_bundle_is_the_system_that_it_holds(bundle, tmp_path, form):
    source = bundle
    if form == "folder":
        source = tmp_path / "unpacked"
        assert len(import_models(bundle, source)) == 1
    for found in (resolve_models(source, folds=[1]), resolve_single(STAGE, source=source, folds=[1], system="unet2d")):
        assert isinstance(found, SingleModel)
        assert (found.system, found.model.folds, found.model.configuration) == ("unet2d", (1,), "2d")
        assert len(found.checksums) == 4
    with pytest.raises(UsageError, match="is a bundle of the system unet2d, not of unetr2d"):
        resolve_single(STAGE, source=source, system="unetr2d")
    with pytest.raises(UsageError, match="this bundle holds unet2d"):
        resolve_models(source, fine=tmp_path)
    with pytest.raises(ModelError, match="has the folds 0 1 only"):
        resolve_models(source, folds=[4])


def test_a_cascade_is_no_other_system(tmp_path):
    for stage in test_models.STAGES:
        test_models.train(tmp_path / "results", stage)
    cascade = resolve_models(results=tmp_path / "results")
    bundle = export_models(cascade, tmp_path / "cascade.zip")
    with pytest.raises(UsageError, match="of the system cascade, not of unet2d"):
        resolve_single(STAGE, source=bundle, system="unet2d")
    test_models.train(tmp_path / "results", STAGE)
    both = resolve_single(STAGE, results=tmp_path / "results").model
    mixed = export_models(replace(cascade, masses=(*cascade.masses, both)), tmp_path / "mixed.zip")
    with pytest.raises(ModelError, match="does not hold one whole system"):
        resolve_models(mixed)


def test_the_commands(results, tmp_path):
    """A folder as nnUNet_results, a dataset of another number, the manifest's word for it."""
    (results / STAGE.dataset).rename(results / "Dataset007_Mine")
    out = tmp_path / "mine.zip"
    arguments = ["models", "export", str(out), "--system", "unet2d", "--ids", "7", "-f", "0"]
    (tmp_path / "nnUNet_results").symlink_to(results)
    done = CliRunner().invoke(app, [*arguments, "--nnunet-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "source: Dataset007_Mine/KitsTrainer__unet2dPlans__2d, folds 0" in done.output
    done = CliRunner().invoke(app, ["models", "import", str(out), "--to", str(tmp_path / "to")])
    assert done.exit_code == 0, done.output
    assert "system: unet2d" in done.output
    wrong = CliRunner().invoke(app, [*arguments[:6], "1,2,3", "--overwrite", "--nnunet-dir", str(tmp_path)])
    assert isinstance(wrong.exception, UsageError)
