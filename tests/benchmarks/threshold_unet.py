"""A network with a real U-Net's cost that answers by thresholds; of PyTorch alone, as whoever predicts loads it."""

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

IS_KIDNEY, IS_MASS, IS_CYST = 800, 1900, 2300
CLIP = {"mean": 100.0, "std": 400.0, "percentile_00_5": -200.0, "percentile_99_5": 2800.0}


class ThresholdUNet(nn.Module):
    """A U-Net whose work is done and counts for nothing, beside logits from thresholds."""

    def __init__(self, input_channels, num_classes, features, convolutions=1, deep_supervision=False):
        super().__init__()
        stages = len(features)
        self.unet = PlainConvUNet(
            input_channels,
            stages,
            features,
            nn.Conv3d,
            3,
            [1] + [2] * (stages - 1),
            convolutions,
            num_classes,
            convolutions,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        self.two = input_channels == 2

    def forward(self, x):
        nothing = self.unet(x) * 1e-20  # not 0: an engine may see that nothing comes of it, and leave the work out
        hu = x[:, :1] * CLIP["std"] + CLIP["mean"]
        kidney = (hu - IS_KIDNEY) / 20
        if not self.two:
            return nothing + torch.cat([-kidney, kidney], dim=1)
        inside = (x[:, 1:] - 0.5) * 20
        masses = torch.minimum((hu - IS_MASS) / 20, inside)
        tumor = torch.minimum(masses, (IS_CYST - hu) / 20)
        return nothing + torch.cat([masses, tumor], dim=1)
