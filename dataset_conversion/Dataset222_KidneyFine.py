"""Dataset 220 -> 222: the ROI around the kidneys, kidney and masses as one class.

The options are those of derive-stages.
"""

import sys

from kits_cascade.cli.app import main

if __name__ == "__main__":
    sys.argv[1:1] = ["derive-stages", "--stages", "222"]
    main()
