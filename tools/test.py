"""``odc test`` in OpenMMLab's place."""

import sys

from odc.cli import main

sys.exit(main(["test", *sys.argv[1:]]))
