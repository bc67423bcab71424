"""KiTS folders in, nnU-Net datasets and plans out."""
