"""Engines and precisions: what a tile costs in each, and what each does to the labels.

    python -m tests.benchmarks.precision tiles [--networks bench shipped nnunet]
    python -m tests.benchmarks.precision labels -i IMAGES [-m MODELS] [--ways openvino:fp32 openvino:bf16]
    python -m tests.benchmarks.precision int8 -i IMAGES [-m MODELS] [--learn 3] [--tiles 12]    (pip install nncf)

``tiles`` takes one thread and processor time, so that it can be run beside other work; the roof is what this processor
reaches in a large product of matrices in PyTorch, in the same precision. ``labels`` runs the cascade over
CT images with trained networks, and compares with the first of --ways: Dice of the regions, and lesions.
``int8`` quantises the fine networks after training, by NNCF, on tiles of the first images, and compares on the others.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kits_cascade.inference.cascade import Cascade, Speed
from kits_cascade.inference.nnunet import openvino_engine, openvino_kept
from kits_cascade.inference.nnunet.engine_networks import build_engine
from kits_cascade.inference.nnunet.engines import BF16, CPU, FP32, OPENVINO, TORCH, Computing
from kits_cascade.labels import CYST, REGIONS, TUMOR
from kits_cascade.models.choose import resolve_models
from kits_cascade.training.networks.subvoxel import SubvoxelUNet
from kits_cascade.volumes.components import components
from kits_cascade.volumes.find import find_inputs
from tests.inference.handmade import dice

LABELS = ["openvino:fp32", "openvino:bf16"]
WAYS = [(TORCH, FP32), (TORCH, BF16), (OPENVINO, FP32), (OPENVINO, BF16)]


def unet(features, convolutions, strides, kind=PlainConvUNet):
    torch.manual_seed(0)
    stages = len(features)
    return kind(
        1,
        stages,
        features,
        nn.Conv3d,
        [3] * stages,
        strides,
        convolutions,
        num_classes=2,
        n_conv_per_stage_decoder=convolutions,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **({"deep_supervision": False} if kind is PlainConvUNet else {}),
    ).eval()


# As bench_models.py has them; of the shipped ones' kind; of the size that nnU-Net plans for a GPU of 8 GB.
NETWORKS = {
    "bench": (lambda: unet([16, 32, 64], 1, [1, 2, 2]), (96, 96, 96)),
    "shipped": (lambda: unet([32, 64, 128, 160], 2, [2, 2, 2, 2], SubvoxelUNet), (96, 96, 96)),
    "nnunet": (lambda: unet([32, 64, 128, 256, 320], 2, [1, 2, 2, 2, 2]), (64, 96, 96)),
}


def least(work, times=3):
    """Fewest processor seconds, and the answer."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        answer = work()
        seconds.append(time.process_time() - start)
    return min(seconds), answer


def roof(precision, size=2048):
    """Operations in a second."""
    kind = {FP32: torch.float32, BF16: torch.bfloat16}[precision]
    one = torch.randn((size, size)).to(kind)
    seconds, _ = least(lambda: one @ one)
    return 2 * size**3 / seconds


def operations(network, image):
    """Of the convolutions of a tile."""
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def tiles(given):
    torch.set_num_threads(1)
    roofs = {precision: roof(precision) for precision in (FP32, BF16)}
    print("| network | tile | engine | processor seconds | times PyTorch fp32 | of the roof | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for name in given.networks:
        make, tile = NETWORKS[name]
        image = torch.randn((1, 1, *tile), generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            os.environ["XDG_CACHE_HOME"] = folder
            first = expected = None
            work = operations(make(), image)
            for engine, precision in WAYS:
                network = make()
                built = build_engine(
                    network, [network.state_dict()], tuple(image.shape), Computing(engine, precision, CPU)
                )
                seconds, answer = least(lambda built=built, image=image: built.network(image.numpy()))
                first, expected = first or seconds, answer if expected is None else expected
                off = float(np.abs(answer - expected).max() / np.abs(expected).max())
                share = work / seconds / roofs[precision]
                about = f"| {name} | {'x'.join(map(str, tile))} | {engine} {precision} | {seconds:.2f}"
                print(f"{about} | {first / seconds:.1f} | {share:.0%} | {off:.4f} |", flush=True)


def lesions(labels):
    return {value: components(labels == value).count for value in (TUMOR, CYST)}


def lacking(known, made):
    """Voxels of the largest lesion, of either, that touches no mass of the other."""
    largest = 0
    for one, other in ((known, made), (made, known)):
        parts = components(one >= TUMOR)
        met = np.unique(parts.labels[other >= TUMOR])
        alone = np.isin(np.arange(1, parts.count + 1), met, invert=True)
        largest = max(largest, int(parts.voxels[alone].max(initial=0)))
    return largest


def labels(given):
    models, cases = resolve_models(given.models), find_inputs(given.input)
    names = [region.name for region in REGIONS]
    regions = ", ".join(names)
    print(f"| {len(cases)} cases | processor seconds | mean Dice: {regions} | least | below 0.998 | lesions alike "
          "| largest that one lacks, mL |\n|---|---|---|---|---|---|---|")  # fmt: skip
    expected = {}
    for way in given.ways:
        engine, precision = way.split(":")
        cascade = Cascade(models, device="cpu", speed=Speed(False, 0.75, engine=engine, precision=precision))
        used, alike, found, alone = 0.0, 0, [], 0.0
        for case in cases:
            start = time.process_time()
            prediction = cascade(case.path)
            made = prediction.labels
            used += time.process_time() - start
            known = expected.setdefault(case.name, made)
            found.append([dice(np.isin(known, r.labels), np.isin(made, r.labels)) for r in REGIONS])
            alike += lesions(known) == lesions(made)
            alone = max(alone, lacking(known, made) * prediction.loaded.volume.voxel_mm3 / 1000)
        figures = np.array(found)
        mean, least = (", ".join(f"{x:.4f}" for x in row) for row in (figures.mean(0), figures.min(0)))
        below = ", ".join(str(n) for n in (figures < 0.998).sum(0))
        print(f"| {engine} {precision} | {used:.1f} | {mean} | {least} | {below} | {alike} | {alone:.2f} |", flush=True)


def compare(name, cascade, cases, expected):
    """Seconds of the networks, the least Dice of each region with what is expected, and whether lesions are alike."""
    used, worst, alike = 0.0, dict.fromkeys((r.name for r in REGIONS), 1.0), True
    for case in cases:
        start = time.process_time()
        found = cascade(case.path).labels
        used += time.process_time() - start
        known = expected.setdefault(case.name, found)
        for region in REGIONS:
            one, other = (np.isin(array, region.labels) for array in (known, found))
            worst[region.name] = min(worst[region.name], dice(one, other))
        alike = alike and lesions(known) == lesions(found)
    figures = ", ".join(f"{value:.5f}" for value in worst.values())
    print(f"| {name} | {used:.1f} | {figures} | {'yes' if alike else 'no'} |", flush=True)


class Heard:
    """A compiled network that keeps what it is shown."""

    def __init__(self, compiled):
        self.compiled, self.seen, self.release_memory = compiled, [], compiled.release_memory

    def __call__(self, tile):
        self.seen.append(tile.copy())
        return self.compiled(tile)


def int8(given):
    import nncf

    cases, compiled = find_inputs(given.input), {}
    compile_model = openvino_kept.compiled

    def remember(model, precision, threads):
        made = compile_model(model, precision, threads)
        compiled[id(made)] = (made, model)
        return made

    openvino_kept.compiled = openvino_engine.compiled = remember
    models = resolve_models(given.models)
    print("| precision | processor seconds, all of it | least Dice, " + ", ".join(region.name for region in REGIONS)
          + " | lesions alike |\n|---|---|---|---|")  # fmt: skip
    learned, others, expected = cases[: given.learn], cases[given.learn :], {}
    for precision in (FP32, BF16):
        speed = Speed(tta=False, tile_step=0.75, engine=OPENVINO, precision=precision)
        cascade = Cascade(models, device="cpu", speed=speed)
        compare(f"OpenVINO {precision}", cascade, others, expected)
    networks = [stage.predictor.network for stage in cascade.predictors.stages[1:]]
    for network in networks:
        network._folds = [Heard(network._folds[0])]
    for case in learned:
        cascade(case.path)
    for network in networks:
        (heard,) = network._folds
        chosen = heard.seen[:: max(1, len(heard.seen) // given.tiles)][: given.tiles]
        _, model = compiled[id(heard.compiled)]
        small = nncf.quantize(model, nncf.Dataset(chosen), subset_size=len(chosen))
        # Whole: a cut would fold the quantised weights away, and leave the encoder in single precision.
        network._folds = [openvino_kept._compiled(small, BF16, torch.get_num_threads())]
    compare("OpenVINO int8 (fine networks)", cascade, others, expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="what", required=True)
    one = ways.add_parser("tiles")
    one.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    two = ways.add_parser("labels")
    two.add_argument("-i", "--input", type=Path, required=True)
    two.add_argument("-m", "--models", type=Path)
    two.add_argument("--ways", nargs="+", default=["torch:fp32", "torch:bf16", *LABELS])
    three = ways.add_parser("int8")
    three.add_argument("-i", "--input", type=Path, required=True)
    three.add_argument("-m", "--models", type=Path)
    three.add_argument("--learn", type=int, default=3)
    three.add_argument("--tiles", type=int, default=12)
    given = parser.parse_args()
    {"tiles": tiles, "labels": labels, "int8": int8}[given.what](given)


if __name__ == "__main__":
    main()
