"""The folder that nnU-Net is pointed at: absolute re-exports keep class identity and pickling."""

from kits_cascade.training.demo_trainers import *  # noqa: F403
from kits_cascade.training.painted import *  # noqa: F403
from kits_cascade.training.trainers import *  # noqa: F403
