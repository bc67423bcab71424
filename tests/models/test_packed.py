"""Checkpoints in bundles: half precision, and no weight twice."""

import torch

from kits_cascade.models.checkpoint import load_checkpoint, strip_checkpoint, widened


def write(path):
    shared = torch.rand(64, 64, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    weights = {"encoder.a": shared, "decoder.encoder.a": shared, "count": torch.tensor(3)}
    torch.save({"network_weights": weights, "trainer_name": "nnUNetTrainer", "init_args": {"fold": 0}}, path)
    return shared


def test_half_precision_and_no_weight_twice(tmp_path):
    shared = write(tmp_path / "whole.pth")
    strip_checkpoint(tmp_path / "whole.pth", tmp_path / "full.pth")
    strip_checkpoint(tmp_path / "whole.pth", tmp_path / "half.pth", half=True)
    assert (tmp_path / "full.pth").stat().st_size < 1.2 * 4 * shared.numel()
    assert (tmp_path / "half.pth").stat().st_size < 1.2 * 2 * shared.numel()
    for name, dtype in (("full", torch.float32), ("half", torch.float16)):
        weights = load_checkpoint(tmp_path / f"{name}.pth")["network_weights"]
        for key in ("encoder.a", "decoder.encoder.a"):
            assert weights[key].dtype == dtype
            torch.testing.assert_close(weights[key].float(), shared, atol=1e-3, rtol=1e-3)
        assert weights["count"] == 3


def test_a_network_with_one_more_channel_starts_as_the_one_before():
    first, second = torch.rand(8, 1, 3, 3, 3), torch.rand(8, 8, 3, 3, 3)
    weights = {"encoder.stages.0.conv.weight": first, "encoder.stages.1.conv.weight": second, "bias": torch.rand(8)}
    made = widened(weights, channels=2)
    wide = made["encoder.stages.0.conv.weight"]
    assert wide.shape == (8, 2, 3, 3, 3)
    torch.testing.assert_close(wide[:, :1], first)
    assert not wide[:, 1].any()
    torch.testing.assert_close(made["encoder.stages.1.conv.weight"], second)
