"""What a few labels of a person do to a clustering: they name its clusters, or train it further."""

from odc.labelling.naming import name_clusters
from odc.labelling.refine import refine

__all__ = ["name_clusters", "refine"]
