"""``odc print-config`` in OpenMMLab's place."""

import sys

from odc.cli import main

sys.exit(main(["print-config", *sys.argv[1:]]))
