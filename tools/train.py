"""``odc train`` in OpenMMLab's place."""

import sys

from odc.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
