"""``python -m odc.cli``."""

import sys

from odc.cli import main

sys.exit(main())
