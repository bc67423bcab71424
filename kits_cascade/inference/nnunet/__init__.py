"""The one adapter to nnU-Net's predictor."""
