"""Dataset 220 -> 223: the ROI with the kidney mask as second channel, cysts and tumours.

The options are those of derive-stages.
"""

import sys

from kits_cascade.cli.app import main

if __name__ == "__main__":
    sys.argv[1:1] = ["derive-stages", "--stages", "223"]
    main()
