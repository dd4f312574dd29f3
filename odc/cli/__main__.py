"""``python -m odc.cli``."""

import sys

from odc.cli import main

if __name__ == "__main__":
    sys.exit(main())
