"""A clustering as its user meets it: the table of the images, on the disk and in memory."""

from odc.results.clustering import Clustering

__all__ = ["Clustering"]
