"""What the surface loss costs in time and memory, against nnUNetTrainer on the same network and patch.

    python -m tests.benchmarks.loss_cost --markdown out.md

Steps are paired: each pair runs one step of either trainer on the same batch, the order changing from pair to pair. The
memory is the difference of the peaks of all allocations during one step (torch's own profiler on a CPU, the allocator's
counter on a GPU).
"""

import argparse
import contextlib
import io
import tempfile
from copy import deepcopy
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch

from tests.training.tiny import folders_in, plans_for

LABELS = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": LABELS,
    "regions_class_order": [1, 3, 2],
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def build(trainer, plans, device):
    with contextlib.redirect_stdout(io.StringIO()):
        made = trainer(deepcopy(plans), "3d_fullres", 0, deepcopy(DATASET), device)
        made.dataset_class = object
        made._set_batch_size_and_oversample()
        torch.manual_seed(0)
        made.num_input_channels = 1
        made.network = made.build_network_architecture(made.plans_manager, made.configuration_manager, 1, 3, True).to(
            device
        )
        made.optimizer, made.lr_scheduler = made.configure_optimizers()
        made.loss = made._build_loss()
    return made


def batch_for(trainer, patch, batch):
    generator = np.random.default_rng(0)
    centre = patch / 2
    grid = np.indices((patch,) * 3).astype(np.float32)
    distance = np.sqrt(((grid - centre) ** 2).sum(0))
    truth = np.stack([distance < patch * f for f in (0.35, 0.2, 0.1)])
    full = torch.from_numpy(np.repeat(truth[None], batch, 0))
    targets = []
    for scale in trainer._get_deep_supervision_scales():
        size = [round(patch * s) for s in scale]
        targets.append(torch.nn.functional.interpolate(full.float(), size, mode="nearest-exact").bool())
    data = torch.from_numpy(generator.normal(size=(batch, 1, patch, patch, patch)).astype(np.float32))
    return {"data": data, "target": targets}


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(trainer, batch, device):
    """Seconds by the clock and of the processor (the latter hardly sees what else runs on the machine)."""
    synchronise(device)
    start, used = perf_counter(), process_time()
    trainer.train_step(batch)
    synchronise(device)
    return np.array([perf_counter() - start, process_time() - used])


def peak_bytes(trainer, batch, device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainer.train_step(batch)
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        trainer.train_step(batch)
    level = peak = 0
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--features", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--spacing", type=float, nargs=3, default=[0.78125] * 3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as root:
        folders_in(root).export()
        lines = measure(options, device)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def measure(options, device):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from kits_cascade.training.trainers import SurfaceLossTrainer

    plans = plans_for("Dataset001_Cost", options.spacing, patch=options.patch, features=options.features)
    for settings in plans["configurations"].values():
        settings["architecture"]["arch_kwargs"]["n_conv_per_stage"] = [2] * len(options.features)
        settings["architecture"]["arch_kwargs"]["n_conv_per_stage_decoder"] = [2] * (len(options.features) - 1)
        settings["batch_size"] = options.batch
    plans["continue_training"] = False
    plain, surface = build(nnUNetTrainer, plans, device), build(SurfaceLossTrainer, plans, device)
    surface.loss.weight = 0.5
    batch = batch_for(plain, options.patch, options.batch)
    for trainer in (plain, surface):
        timed(trainer, batch, device)
    ratios, seconds = [], []
    for pair in range(options.pairs):
        order = (plain, surface) if pair % 2 else (surface, plain)
        times = {trainer: timed(trainer, batch, device) for trainer in order}
        ratios.append(times[surface] / times[plain])
        seconds.append(times[plain])
    voxels = options.batch * options.patch**3 * 3
    extra = (peak_bytes(surface, batch, device) - peak_bytes(plain, batch, device)) / voxels
    alone = peak_of_loss(surface, batch, device) / voxels
    low, middle, high = np.percentile(ratios, [25, 50, 75], axis=0)
    return [
        "| measure | value |",
        "|---|---|",
        f"| device | {device.type}, {torch.get_num_threads()} threads |",
        f"| network, patch, batch | {options.features} features, {options.patch}^3, {options.batch}, 3 regions |",
        f"| nnUNetTrainer, median step | {np.median([s[0] for s in seconds]):.2f} s |",
        f"| SurfaceLossTrainer / nnUNetTrainer, clock, median of {options.pairs} pairs (quartiles) "
        f"| {middle[0]:.3f} ({low[0]:.3f} - {high[0]:.3f}) |",
        f"| the same, processor time | {middle[1]:.3f} ({low[1]:.3f} - {high[1]:.3f}) |",
        f"| peak of a step, more than nnUNetTrainer's | {extra:.1f} bytes per voxel and region |",
        f"| peak of the surface term alone, forward and backward | {alone:.1f} bytes per voxel and region |",
    ]


def peak_of_loss(surface, batch, device):
    """Of the extra term by itself, beyond the logits and their gradient."""
    truth = batch["target"][0].to(device)
    logits = torch.randn(truth.shape, device=device, requires_grad=True)

    class Step:
        def train_step(self, _batch):
            surface.loss.extra(logits, truth).backward()

    logits.grad = torch.zeros_like(logits)
    return peak_bytes(Step(), batch, device)


if __name__ == "__main__":
    main()
