"""The cascade with an oracle instead of networks: it reads the truth out of the voxel values. No torch.

Run as a module it is the command line itself, so that a test can kill it: python -m tests.inference.oracle predict ...
"""

import os
import sys
import time

import numpy as np

from kits_cascade.labels import CYST, KIDNEY, TUMOR

HU = np.array([-100, 150, 260, 5], np.int16)  # background, kidney, tumor, cyst


def truth_of(image):
    """Labels of a volume whose voxels were made by HU[labels]."""
    labels = np.zeros(image.shape, np.uint8)
    for label in (KIDNEY, TUMOR, CYST):
        labels[image == HU[label]] = label
    return labels


class OracleRegion:
    def __init__(self, oracle, image, box):
        self.oracle, self.labels, self.box = oracle, truth_of(image), box
        self.probabilities = {}

    def kidney(self, near):
        self.oracle.calls.append(("kidney", self.box, near))
        return self.labels > 0

    def masses(self, kidney, near):
        self.oracle.calls.append(("masses", self.box, kidney, near))
        self.probabilities = {"masses": np.stack([self.labels > KIDNEY, self.labels == TUMOR]).astype(np.float32)}
        return self.labels > KIDNEY, self.labels == TUMOR


class Oracle:
    """``lost``: a function that spoils the coarse mask."""

    def __init__(self, step=(1, 2, 2), seconds=0.0, lost=None):
        self.step, self.delay, self.lost = step, seconds, lost
        self.calls, self.seconds = [], {"network": 0.0}

    def coarse(self, image, spacing):
        time.sleep(self.delay)
        self.calls.append(("coarse", image.shape, spacing))
        mask = truth_of(image)[tuple(slice(s // 2, None, s) for s in self.step)] > 0
        return mask if self.lost is None else self.lost(mask)

    def region(self, image, spacing, box):
        return OracleRegion(self, image, box)


if __name__ in ("__main__", "__mp_main__"):  # the second: in a worker process of the first
    from kits_cascade.inference import cascade

    networks = cascade.load_networks

    def load(*arguments):
        if "ORACLE_LOADS" in os.environ:  # a file with a line for each time that the networks are loaded
            with open(os.environ["ORACLE_LOADS"], "a", encoding="utf-8") as loads:
                loads.write(f"{os.getpid()} {'torch' in sys.modules}\n")
        if "ORACLE_REAL" in os.environ:  # the networks after all, but counted
            return networks(*arguments)
        return Oracle(seconds=float(os.environ.get("ORACLE_SECONDS", "0")))

    cascade.load_networks = load

if __name__ == "__main__":
    from kits_cascade.cli.app import main

    main()
    sys.exit(0)
