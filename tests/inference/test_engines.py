"""Engines and precisions: what a machine gets, that they answer alike, and what becomes of networks that do not fit."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from importlib import util

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from kits_cascade.errors import EnvironmentNotReadyError, MissingExtraError, ModelError, UsageError
from kits_cascade.files import sha256
from kits_cascade.inference.cascade import Speed
from kits_cascade.inference.nnunet import (
    engine_networks,
    engines,
    network_source,
    openvino_engine,
    openvino_kept,
    openvino_parts,
)
from kits_cascade.inference.nnunet.engine_networks import build_engine
from kits_cascade.inference.nnunet.engines import (
    BF16,
    CPU,
    ENGINE_BY_NAME,
    FP32,
    OPENVINO,
    TORCH,
    Computing,
    choose_computing,
    multiplies_bfloat16,
    precisions,
)
from kits_cascade.inference.nnunet.predictors import NnunetPredictors
from kits_cascade.inference.nnunet.stage import StageNetwork
from kits_cascade.inference.nnunet.tiles import TileOptions
from kits_cascade.inference.nnunet.torch_network import TorchNetwork, with_rounded_kernels
from kits_cascade.models.choose import resolve_models
from kits_cascade.processor import processor_flags, processor_name
from kits_cascade.runs.predict import predict_folder
from kits_cascade.stages import KIDNEY_STAGE
from kits_cascade.training.augment import BinaryPrior
from kits_cascade.training.devices import fast_bfloat16
from kits_cascade.training.networks.subvoxel import SubvoxelUNet
from kits_cascade.volumes.nifti import read_labels, write_volume
from tests.inference.handmade import ThresholdNet, dice, make_case, unet_plan, write_models

TILE = (16, 24, 32)
needs_openvino = pytest.mark.skipif(util.find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.fixture
def machine(monkeypatch):
    """A machine with and without OpenVINO and fast bfloat16."""

    def of(openvino, bfloat16):
        monkeypatch.setattr(engines.util, "find_spec", lambda name: name != "openvino" or openvino or None)
        monkeypatch.setattr(engines, "multiplies_bfloat16", lambda: bfloat16)

    return of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kits-cascade" / "openvino"


@pytest.mark.parametrize("openvino", [True, False])
@pytest.mark.parametrize("bfloat16", [True, False])
def test_auto_takes_the_fastest_there_is(machine, openvino, bfloat16):
    machine(openvino, bfloat16)
    expected = Computing(OPENVINO if openvino else TORCH, BF16 if bfloat16 else FP32, CPU)
    assert choose_computing("auto", "auto", CPU) == expected
    assert choose_computing("torch", "fp32", CPU) == Computing(TORCH, FP32, CPU)


def test_in_bf16_kidneys_are_looked_for_in_fp32():
    computing = Computing(OPENVINO, BF16, CPU, threads=3)
    assert [computing.of_stage(key).precision for key in ("coarse", "kidney", "masses", "fine")] == [FP32, *[BF16] * 3]
    assert computing.of_stage("coarse").threads == 3
    assert engines.as_nnunet("cuda").of_stage("coarse") == engines.as_nnunet("cuda")


def test_what_the_machine_lacks_is_an_error_that_names_what_it_has(machine):
    machine(openvino=False, bfloat16=False)
    with pytest.raises(MissingExtraError, match=r"kits-cascade\[fast\]"):
        choose_computing("openvino", "auto", CPU)
    with pytest.raises(EnvironmentNotReadyError, match=r"not fast in bf16; it has fp32"):
        choose_computing("auto", "bf16", CPU)
    with pytest.raises(UsageError, match=r"no engine 'tpu'; there are auto, openvino, torch"):
        choose_computing("tpu", "auto", CPU)
    with pytest.raises(UsageError, match=r"no precision 'int4'; there are auto, fp32"):
        choose_computing("auto", "int4", CPU)
    assert "openvino has the device cpu, not cuda" in str(ENGINE_BY_NAME[OPENVINO].reason_against("cuda:1"))
    assert precisions("mps") == (FP32,)


def test_the_choice_is_settled_before_it_is_recorded(machine):
    machine(openvino=False, bfloat16=True)
    assert Speed().settled("cpu") == (Speed(engine="torch", precision="bf16"), "cpu")
    assert Speed().changed(engine="openvino", precision="fp32") == Speed(engine="openvino", precision="fp32")


def test_a_choice_on_a_processor_does_not_load_torch():
    code = (
        "import sys; from kits_cascade.inference.cascade import Speed; Speed().settled('cpu');"
        "sys.exit('torch' in sys.modules)"
    )
    if processor_flags() is None:
        pytest.skip("this system does not tell what its processor can do")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_system_and_torch_agree_on_the_processor():
    flags = processor_flags()
    known = getattr(torch.cpu, "get_capabilities", dict)()
    if flags is None or "avx512_bf16" not in known:
        pytest.skip("the system or this PyTorch does not tell what the processor can do")
    assert multiplies_bfloat16() == fast_bfloat16(torch.device("cpu"))
    assert processor_name()


def unet(kind=PlainConvUNet, convolution=nn.Conv3d, strides=(1, 2, 2), channels=1):
    stages = len(strides)
    torch.manual_seed(0)
    more = {} if kind is SubvoxelUNet else {"deep_supervision": False}
    norm = nn.InstanceNorm3d if convolution is nn.Conv3d else nn.InstanceNorm2d
    return kind(
        channels,
        stages,
        [8, 16, 16][:stages],
        convolution,
        [3] * stages,
        list(strides),
        1,
        num_classes=2,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **more,
    ).eval()


def with_prior():
    network = ThresholdNet(2, 2).eval()
    network.register_forward_pre_hook(BinaryPrior([1]))
    return network


NETWORKS = {
    "plain": (unet, (1, 1, *TILE)),
    "subvoxel": (lambda: unet(SubvoxelUNet, strides=(2, 2)), (1, 1, *TILE)),
    "prior": (with_prior, (1, 2, *TILE)),
    "flat": (lambda: unet(convolution=nn.Conv2d), (1, 1, 32, 48)),
}


def noise():
    return np.random.default_rng(0).normal(size=(1, 40, 32, 70)).astype(np.float32)


def answers(network, built, shape):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network(image).numpy(), built.network(image.numpy())


def difference(expected, given):
    assert given.dtype == np.float32
    assert given.flags.c_contiguous
    assert given.shape == expected.shape
    return float(np.abs(given - expected).max() / np.abs(expected).max())


UNETS = ("plain", "subvoxel", "flat")


@pytest.mark.parametrize("engine", [TORCH, pytest.param(OPENVINO, marks=needs_openvino)])
@pytest.mark.parametrize("name", UNETS)
def test_in_bfloat16_an_answer_differs_by_rounding(name, engine):
    make, shape = NETWORKS[name]
    network, again = make(), make()
    built = build_engine(again, [again.state_dict()], shape, Computing(engine, BF16, CPU))
    assert built.fell_back == ""
    assert 0 < difference(*answers(network, built, shape)) < 0.1
    built.network.release()
    assert 0 < difference(*answers(network, built, shape)) < 0.1


@pytest.mark.parametrize("name", UNETS)
def test_in_bfloat16_torch_s_encoder_is_as_exact_as_ever(name):
    make, shape = NETWORKS[name]
    network, again = make(), make()
    seen = []
    again.encoder.register_forward_hook(lambda _module, _given, features: seen.append(features))
    answers(network, build_engine(again, [again.state_dict()], shape, Computing(TORCH, BF16, CPU)), shape)
    with torch.inference_mode():
        expected = network.encoder(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    for one, other in zip(expected, seen[0], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", UNETS)
def test_in_bfloat16_torch_s_last_convolution_computes_in_single_precision(name):
    make, shape = NETWORKS[name]
    network, seen = make(), []
    built = build_engine(network, [network.state_dict()], shape, Computing(TORCH, BF16, CPU))
    last = network.decoder.seg_layers[-1]
    last.register_forward_hook(lambda _module, _given, answer: seen.append(answer.dtype))
    built.network.choose(built.folds[0])
    with built.network.computing():
        built.network(np.ones(shape, np.float32))
    assert seen == [torch.float32]


@pytest.mark.parametrize("name", UNETS)
def test_torch_s_kernels_are_rounded_behind_the_encoder_alone(name):
    network = NETWORKS[name][0]()
    exact = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    made = with_rounded_kernels(network, exact)
    network.load_state_dict(made)
    changed = {key for key in exact if not torch.equal(exact[key], made[key])}
    assert changed
    assert all(exact[key][0, 0].numel() > 1 for key in changed)
    assert all(torch.equal(made[key], made[key].bfloat16().float()) for key in changed)
    for key, tensor in network.encoder.state_dict().items():
        assert torch.equal(exact[f"encoder.{key}"], tensor)
    for key, tensor in network.state_dict().items():  # weights that have two names are the same under both
        assert torch.equal(tensor, made[key])


def test_kernels_of_a_network_without_an_encoder_stay():
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 2, 1))
    exact = network.state_dict()
    made = with_rounded_kernels(network, exact)
    assert all(made[key] is tensor for key, tensor in exact.items())


def operations(model, kind):
    return sum(operation.get_type_name() == kind for operation in model.get_ordered_ops())


class Interpolated(nn.Module):
    """Batch norms, whose scales are computed of constants, and an interpolation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, 2, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm3d(8) for _ in range(3))
        self.third, self.last = nn.Conv3d(16, 8, 3, padding=1), nn.Conv3d(8, 2, 1)

    def forward(self, image):
        fine = self.norms[0](self.first(image)).relu()
        up = nn.functional.interpolate(self.norms[1](self.second(fine)).relu(), scale_factor=2.0)
        return self.last(self.norms[2](self.third(torch.cat((fine, up), 1))).relu())


@needs_openvino
def test_what_is_computed_of_constants_does_not_pass_from_part_to_part():
    shape = (1, 1, *TILE)
    model = openvino_engine.convert_network(Interpolated().eval(), shape)
    encoder, rest = openvino_parts.cut(model)
    assert sorted(tuple(output.get_shape()) for output in encoder.outputs) == [(1, 8, 8, 12, 16), (1, 8, *TILE)]
    assert operations(encoder, "Convolution") == operations(rest, "Convolution") == 2


@needs_openvino
def test_released_parts_hold_no_tile_and_answer_again():
    make, shape = NETWORKS["plain"]
    network = openvino_kept.compiled(openvino_engine.convert_network(make(), shape), BF16, 1)
    tile = np.ones(shape, np.float32)
    first = network(tile)[0]
    network.release_memory()
    assert network._requests is None
    np.testing.assert_array_equal(network(tile)[0], first)
    kept = first.copy()
    network(tile + 1)
    np.testing.assert_array_equal(first, kept)


@needs_openvino
@pytest.mark.parametrize("name", UNETS)
def test_a_network_in_two_parts_answers_bit_for_bit(name):
    make, shape = NETWORKS[name]
    network = make()
    model = openvino_engine.convert_network(network, shape)
    convolutions = operations(model, "Convolution")
    encoder, rest = openvino_parts.cut(model)
    assert operations(encoder, "Convolution") == sum(len(stage[0].convs) for stage in network.encoder.stages)
    assert operations(encoder, "Convolution") + operations(rest, "Convolution") == convolutions
    tile = torch.randn(shape, generator=torch.Generator().manual_seed(1)).numpy()
    parts = openvino_parts.TwoParts(*(openvino_kept.compiled(part, FP32, 1) for part in (encoder, rest)))
    whole = openvino_kept.compiled(model, FP32, 1)(tile)[0]
    np.testing.assert_array_equal(parts(tile)[0], whole)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(parts(tile + 1)[0], whole)


@needs_openvino
@pytest.mark.parametrize("name", UNETS)
def test_kernels_behind_the_encoder_are_rounded_before_the_engine_does(name):
    make, shape = NETWORKS[name]
    model = openvino_engine.convert_network(make(), shape)
    rounded = openvino_parts.rounded_behind_encoder(model)
    (encoder, rest), (same, other) = openvino_parts.cut(rounded), openvino_parts.cut(model)
    assert kernels(encoder) == kernels(same)
    assert len(kernels(rest)) > len(kernels(other)) > 1  # one of a single tap has become two
    tile = torch.randn(shape, generator=torch.Generator().manual_seed(1)).numpy()
    exact, near = (openvino_kept.compiled(one, FP32, 1)(tile)[0] for one in (model, rounded))
    assert 0 < np.abs(near - exact).max() < 0.02 * np.abs(exact).max()


def kernels(model):
    """The convolutions' weights, as bytes."""
    found = (op.input_value(1).get_node() for op in model.get_ordered_ops() if op.get_type_name() == "Convolution")
    return [kernel.data.tobytes() for kernel in found]


@needs_openvino
def test_each_precision_keeps_a_network_of_its_own(tmp_path):
    model = small_unet(tmp_path)
    first, half = (StageNetwork(model, Computing(OPENVINO, p, CPU), TileOptions()) for p in (FP32, BF16))
    (name,) = network_source.NetworkSource.of(model).names
    entries = [openvino_kept.entry_of(name, precision) for precision in (FP32, BF16)]
    exact, rounded = map(openvino_kept.read_entry, entries)
    assert kernels(exact) != kernels(rounded)
    again = StageNetwork(model, Computing(OPENVINO, FP32, CPU), TileOptions())
    np.testing.assert_array_equal(again.predictor.logits(noise()), first.predictor.logits(noise()))
    assert half.predictor.logits(noise()).shape == first.predictor.logits(noise()).shape


@needs_openvino
def test_a_network_that_upsamples_nothing_is_not_cut():
    make, shape = NETWORKS["prior"]
    model = openvino_engine.convert_network(make(), shape)
    assert openvino_parts.cut(model) is None


def test_weights_are_loaded_again_only_when_they_are_others():
    network = unet()
    built = build_engine(network, [unet().state_dict()], (1, 1, *TILE), Computing(TORCH, BF16, CPU))
    (weights,) = built.folds
    built.network.choose(weights)
    with torch.no_grad():
        next(network.parameters()).fill_(7)
    built.network.choose(weights)
    assert bool((next(network.parameters()) == 7).all())
    built.network.choose(dict(weights))
    assert not bool((next(network.parameters()) == 7).all())


def test_what_nnunet_computes_with_is_left_as_it_is():
    network, shape = unet(), (1, 1, *TILE)
    assert difference(*answers(network, build_engine(network, [{}], shape, engines.as_nnunet(CPU)), shape)) == 0


@needs_openvino
@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_answers_as_torch(name, cache, monkeypatch):
    make, shape = NETWORKS[name]
    network = make()
    computing = Computing(OPENVINO, FP32, CPU)
    built = build_engine(make(), [network.state_dict()], shape, computing)
    assert built.fell_back == ""
    assert difference(*answers(network, built, shape)) < 1e-3
    # The second time it is read, not converted.
    monkeypatch.setattr(openvino_engine, "convert_network", None)
    again = build_engine(make(), [network.state_dict()], shape, computing)
    assert difference(*answers(network, again, shape)) < 1e-3
    assert len(list(cache.iterdir())) == 1


@needs_openvino
def test_folds_are_told_apart(cache):
    first, second = unet(), unet()
    with torch.no_grad():
        next(second.parameters()).mul_(2)
    shape = (1, 1, *TILE)
    built = build_engine(unet(), [first.state_dict(), second.state_dict()], shape, Computing(OPENVINO, FP32, CPU))
    for network, fold in ((second, built.folds[1]), (first, built.folds[0])):
        built.network.choose(fold)
        assert difference(*answers(network, built, shape)) < 1e-3
    assert len(list(cache.iterdir())) == 2


class Tossed(nn.Module):
    """Holds an operation that OpenVINO does not have."""

    def forward(self, image):
        return image + torch.logspace(0, 1, 2)[0].digamma()


class Baked(nn.Module):
    """What tracing makes a constant of."""

    def forward(self, image):
        return image + 100 * float(image.mean())


@needs_openvino
@pytest.mark.parametrize(("kind", "reason"), [(Tossed, "No conversion rule found"), (Baked, "differs from PyTorch's")])
def test_a_network_that_cannot_be_converted_runs_in_torch(cache, kind, reason):
    built = build_engine(kind(), [{}], (1, 1, *TILE), Computing(OPENVINO, FP32, CPU))
    assert reason in built.fell_back
    assert isinstance(built.network, TorchNetwork)
    assert not cache.exists()


@needs_openvino
def test_a_broken_entry_is_made_anew_and_a_cache_that_cannot_be_written_does_no_harm(cache, monkeypatch):
    network, shape = unet(strides=(1, 2)), (1, 1, *TILE)
    computing = Computing(OPENVINO, FP32, CPU)

    def works():
        return (
            difference(*answers(network, build_engine(network, [network.state_dict()], shape, computing), shape)) < 1e-3
        )

    assert works()
    (entry,) = cache.iterdir()
    whole = (entry / "network.bin").read_bytes()
    for harm in (lambda: (entry / "network.bin").write_bytes(whole[:100]), (entry / "sums.json").unlink):
        harm()
        assert works()
        assert (entry / "network.bin").read_bytes() == whole
    (entry / "network.xml").write_text("no model")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino_engine, "_keep", full)
    assert works()


@needs_openvino
def test_two_that_fill_the_cache_at_once_do_not_harm_each_other(cache):
    network, shape = unet(strides=(1, 2)), (1, 1, *TILE)
    models = [openvino_engine.convert_network(network, shape) for _ in range(2)]
    threads = [threading.Thread(target=openvino_engine._keep, args=(model, cache / "key")) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert openvino_kept.read_entry(cache / "key") is not None
    assert [path.name for path in cache.iterdir()] == ["key"]


@needs_openvino
def test_nothing_is_reported_to_the_maker():
    openvino_kept.load_openvino()
    assert "openvino_telemetry" not in sys.modules
    assert "openvino.tools.ovc" not in sys.modules


@needs_openvino
def test_a_prediction_says_what_it_computed_with(tmp_path, monkeypatch, caplog):
    results = write_models(tmp_path / "results")
    image, _ = make_case((3.0, 1.6, 1.4), size_mm=(110, 110, 220))
    write_volume(tmp_path / "in" / "a_0000.nii.gz", image)
    convert = openvino_engine.convert_network

    def not_the_masses(network, shape):
        if shape[1] == 2:
            raise openvino_kept.ConversionError("it has a loop")
        return convert(network, shape)

    monkeypatch.setattr(openvino_engine, "convert_network", not_the_masses)
    labels, settings = [], []
    for engine in (OPENVINO, TORCH):
        out = tmp_path / engine
        speed = Speed(tta=False, engine=engine, precision=FP32)
        predict_folder(tmp_path / "in", out, resolve_models(results), device="cpu", speed=speed)
        run = json.loads((out / "run.json").read_text())
        (about,) = [json.loads(path.read_text()) for path in (out / ".kits-cascade" / "runs").glob("*.json")]
        assert about["computed_with"]["engine"] == engine == about["options"]["engine"]
        assert about["computed_with"]["precision"] == FP32
        assert about["computed_with"]["threads"] >= 1
        settings.append(run["cases"]["a"]["settings"])
        labels.append(read_labels(out / "a.nii.gz").array)
        lacking = {"masses": "it has a loop"} if engine == OPENVINO else {}
        assert about["computed_with"].get("in_torch_instead", {}) == lacking
    assert settings[0] != settings[1]
    assert all(dice(labels[0] == value, labels[1] == value) > 0.999 for value in (1, 2, 3))
    assert "MassesTumor" in caplog.text
    assert "it has a loop" in caplog.text


def small_unet(results):
    """A trained kidney network that is made of known parts."""
    network = unet(strides=(1, 2))
    folder = write_models(results) / KIDNEY_STAGE.dataset / f"nnUNetTrainer__nnUNetPlans__{KIDNEY_STAGE.configuration}"
    content = json.loads((folder / "plans.json").read_text())
    content["configurations"][KIDNEY_STAGE.configuration]["architecture"] = unet_plan([8, 16])
    (folder / "plans.json").write_text(json.dumps(content))
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"network_weights": network.state_dict()}, path)
    return resolve_models(results).kidney


@needs_openvino
def test_a_network_that_is_kept_is_neither_read_nor_built(tmp_path, monkeypatch):
    model, computing = small_unet(tmp_path), Computing(OPENVINO, FP32, CPU)
    data = noise()
    first = StageNetwork(model, computing, TileOptions()).predictor

    def not_again(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(network_source, "load_checkpoint", not_again)
    again = StageNetwork(model, computing, TileOptions()).predictor
    assert again.mirror_axes == first.mirror_axes == (0,)
    np.testing.assert_array_equal(again.logits(data), first.logits(data))
    with pytest.raises(AssertionError, match="read again"):
        StageNetwork(model, Computing(TORCH, FP32, CPU), TileOptions())
    path = model.checkpoints[0]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(AssertionError, match="read again"):
        StageNetwork(model, computing, TileOptions())


@needs_openvino
def test_a_network_of_foreign_code_is_kept_as_long_as_that_is_the_same(tmp_path, monkeypatch):
    model, computing = resolve_models(write_models(tmp_path)).kidney, Computing(OPENVINO, FP32, CPU)
    first = StageNetwork(model, computing, TileOptions()).predictor
    monkeypatch.setattr(network_source, "load_checkpoint", None)
    again = StageNetwork(model, computing, TileOptions()).predictor
    np.testing.assert_array_equal(again.logits(noise()), first.logits(noise()))
    monkeypatch.setattr(openvino_kept, "is_unchanged", lambda code: not code)
    with pytest.raises(TypeError):
        StageNetwork(model, computing, TileOptions())


@needs_openvino
def test_a_network_whose_code_cannot_be_told_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_networks, "foreign_code", lambda: None)
    model = resolve_models(write_models(tmp_path)).kidney
    answer = StageNetwork(model, Computing(OPENVINO, FP32, CPU), TileOptions()).predictor.logits(noise())
    assert np.isfinite(answer).all()
    assert not list(tmp_path.glob("cache/**/*.xml"))


@needs_openvino
def test_an_entry_of_code_that_has_changed_is_replaced(tmp_path):
    make, shape = NETWORKS["plain"]
    script = tmp_path / "script.py"
    script.write_text("1\n")
    models = [openvino_engine.convert_network(make(), shape) for _ in range(2)]
    entry = tmp_path / "cache" / "key"
    openvino_engine._keep(models[0], entry, {openvino_kept.CODE: {str(script): sha256(script)}})
    assert openvino_kept.read_entry(entry) is not None
    script.write_text("2\n")
    assert openvino_kept.read_entry(entry) is None
    openvino_engine._keep(models[1], entry, {openvino_kept.CODE: {str(script): sha256(script)}})
    assert openvino_kept.read_entry(entry) is not None


@needs_openvino
def test_kernels_that_the_engine_scales_are_left_to_it():
    model = openvino_engine.convert_network(Interpolated().eval(), (1, 1, *TILE))
    before, after = kernels(model), kernels(openvino_parts.rounded_behind_encoder(model))
    assert len(before) == 4  # two of the encoder; one in front of a batch norm, and the last, which becomes two
    assert len([mark for mark in after if mark in before]) == 3
    assert len(after) == 5


@needs_openvino
def test_a_network_of_a_foreign_trainer_is_built_each_time(tmp_path):
    model = replace(resolve_models(write_models(tmp_path)).kidney, trainer="SomebodysTrainer")
    assert network_source.NetworkSource.of(model).names == []


@needs_openvino
@pytest.mark.parametrize("mirror", [False, True])
def test_being_a_tile_ahead_changes_nothing(tmp_path, mirror):
    tiles = TileOptions(0.5, mirror=mirror, skip_beyond_mm=None)
    model = resolve_models(write_models(tmp_path)).kidney
    window = StageNetwork(model, Computing(OPENVINO, FP32, CPU), tiles).predictor
    data = noise()
    assert window.network.ahead
    ahead = window.logits(data)
    window.network.ahead = False
    np.testing.assert_array_equal(ahead, window.logits(data))

    def broken(_):
        raise RuntimeError("no tile today")

    window.network.ahead, window.predict_tile = True, broken
    with pytest.raises(RuntimeError, match="no tile today"):
        window.logits(data)


@pytest.mark.parametrize("mirror", [False, True])
def test_where_a_device_s_memory_ends_sums_are_kept_beside_it(tmp_path, monkeypatch, mirror):
    """The way of a GPU, walked on a processor that is called by a number: the same sums, on either side."""
    model = resolve_models(write_models(tmp_path)).kidney
    window = StageNetwork(model, Computing(TORCH, FP32, CPU), TileOptions(0.5, mirror, None)).predictor
    assert bool(window.mirror_axes) == mirror
    data = noise()
    expected = window.logits(data)
    add, tried = window._sum, []

    def full(data, places, on_tile):
        tried.append(type(data))
        if isinstance(data, torch.Tensor):
            raise torch.cuda.OutOfMemoryError("no more")
        return add(data, places, on_tile)

    window.network.device = torch.device("cpu", 0)
    np.testing.assert_array_equal(window.logits(data), expected)
    monkeypatch.setattr(window, "_sum", full)
    np.testing.assert_array_equal(window.logits(data), expected)
    assert tried == [torch.Tensor, np.ndarray]


def test_answers_too_large_to_be_added_up_are_an_error(tmp_path):
    window = StageNetwork(resolve_models(write_models(tmp_path)).kidney, Computing(TORCH, FP32, CPU), TileOptions())
    window.predictor.predict_tile = lambda tile: np.full((1, window.predictor.heads, *tile.shape[2:]), 1e5, np.float32)
    with pytest.raises(ModelError, match="too large"):
        window.predictor.logits(noise())


@pytest.mark.parametrize("step", [0, 1.5])
def test_steps_that_leave_gaps_are_refused(tmp_path, step):
    tiles = TileOptions(step)
    window = StageNetwork(resolve_models(write_models(tmp_path)).kidney, Computing(TORCH, FP32, CPU), tiles).predictor
    with pytest.raises(UsageError, match="above 0, and 1 at most"):
        window.logits(noise())


def test_predictors_by_a_device_s_name_compute_as_nnunet(tmp_path):
    networks = NnunetPredictors(resolve_models(write_models(tmp_path)), "cpu")
    assert networks.computed_with["engine"] == TORCH
    assert networks.computed_with["precision"] == FP32
    assert isinstance(networks.coarse_stage.predictor.network.module, ThresholdNet)
    assert np.array_equal([stage.predictor.fell_back for stage in networks.stages], ["", "", ""])
