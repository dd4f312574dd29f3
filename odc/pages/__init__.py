"""The page of one clustering: a file that a person opens, looks through, and names clusters in."""

from odc.pages.folder import report
from odc.pages.page import PAGE, write_page
from odc.pages.words import Words

__all__ = ["PAGE", "Words", "report", "write_page"]
