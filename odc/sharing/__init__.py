"""A clustering in the files that other tools read."""

from odc.sharing.formats import TOOLS, Tool, share

__all__ = ["TOOLS", "Tool", "share"]
