"""The folder that nnU-Net is pointed at: one absolute re-export keeps class identity and pickling."""

from kits_cascade.training.trainers import *  # noqa: F403
