"""nnU-Net's own commands with our trainers, in processes of their own: train, predict, export, install elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kits_cascade.files import read_json
from kits_cascade.volumes.nifti import read_labels
from tests.training.tiny import folders_in, write_tiny

pytestmark = pytest.mark.slow
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}


def run(folders, *command):
    environment = os.environ | {
        "nnUNet_raw": str(folders.raw),
        "nnUNet_preprocessed": str(folders.preprocessed),
        "nnUNet_results": str(folders.results),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
    }
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [str(program), *command[1:]],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_train_predict_export_install(nnunet, tmp_path):
    tiny = write_tiny(
        nnunet, 851, "masses", cases=2, patch=32, features=(16, 16, 16), configurations=["3d_fullres"], options=SHORT
    )
    name, trainer = tiny.name, "TumorSurfaceLossTrainer"
    run(nnunet, "nnUNetv2_train", name, "3d_fullres", "0", "-tr", trainer, "-device", "cpu")
    model = nnunet.results / name / f"{trainer}__nnUNetPlans__3d_fullres"
    assert read_json(model / "fold_0" / "training_progress.json")["classes"] == ["tumor"]
    bundle = tmp_path / "model.zip"
    what = ("-d", name, "-c", "3d_fullres", "-tr", trainer, "-f", "0")
    run(nnunet, "nnUNetv2_export_model_to_zip", *what, "-o", str(bundle))
    elsewhere = folders_in(tmp_path / "elsewhere")
    run(elsewhere, "nnUNetv2_install_pretrained_model_from_zip", str(bundle))
    out = tmp_path / "out"
    run(
        elsewhere, "nnUNetv2_predict", "-i", str(tiny.images), "-o", str(out), *what,
        "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta",
    )  # fmt: skip
    for truth in (tiny.preprocessed / "gt_segmentations").glob("*.nii.gz"):
        found = read_labels(out / truth.name)
        assert found.shape == read_labels(truth).shape
        assert set(np.unique(found.array)) <= {0, 2}


def _half(rank, port, logits, target, results):
    """One of two processes, each with half of the batch."""
    import torch.distributed as dist

    from kits_cascade.training.loss_table import _gather
    from kits_cascade.training.losses import SurfaceOverlapLoss

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    own = logits[rank : rank + 1].clone().requires_grad_()
    loss = SurfaceOverlapLoss((1, 1, 1), regions=True, batch_dice=True, gather=_gather)(own, target[rank : rank + 1])
    loss.backward()
    # DistributedDataParallel averages gradients over the processes.
    results[rank] = (loss.item(), own.grad / 2)
    dist.destroy_process_group()


def test_two_processes_see_the_loss_of_the_whole_batch():
    from nnunetv2.run.run_training import find_free_network_port

    from kits_cascade.training.losses import SurfaceOverlapLoss

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, 8, generator=generator)
    target = torch.rand(2, 2, 8, 8, 8, generator=generator) > 0.6
    whole = logits.clone().requires_grad_()
    expected = SurfaceOverlapLoss((1, 1, 1), regions=True, batch_dice=True)(whole, target)
    expected.backward()
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        port = find_free_network_port()
        torch.multiprocessing.spawn(_half, (port, logits, target, results), nprocs=2)
        losses, gradients = zip(*(results[rank] for rank in (0, 1)), strict=True)
    assert losses == pytest.approx([expected.item()] * 2)
    assert torch.allclose(torch.cat(gradients), whole.grad, atol=1e-7)
