"""The command line."""

from odc.cli.main import main

__all__ = ["main"]
