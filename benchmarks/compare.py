"""Compare clustering methods on equal terms; the same as ``odc compare``, whose ``--help`` says everything."""

import sys

from odc.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
