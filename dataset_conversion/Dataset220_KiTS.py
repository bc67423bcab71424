"""KiTS19, KiTS21 or KiTS23 -> nnUNet_raw/Dataset220_KiTS. The same as: kits-cascade convert DIR [options]"""

import sys

from kits_cascade.cli.app import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
