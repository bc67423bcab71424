"""The container's entry point with an oracle for networks: python -m tests.service.container grand-challenge ..."""

import os
import sys
from types import SimpleNamespace

if __name__ == "__main__":
    from kits_cascade.cli.app import main
    from kits_cascade.inference import cascade
    from kits_cascade.models import choose
    from tests.inference.oracle import Oracle

    if "NETWORKS_AS_THEY_ARE" not in os.environ:
        choose.resolve_models = lambda *_, **__: SimpleNamespace(summary=lambda: ["oracle"])
        cascade._resolved = lambda models, *_: models
        cascade.load_networks = lambda *_: Oracle()
    main()
    sys.exit(0)
