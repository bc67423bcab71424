"""The one adapter to nnU-Net's way of predicting."""
