"""From a person's folder of pictures to clusters, by one call: look, choose, run, leave."""

from odc.folder.clustering import Wanted, cluster

__all__ = ["Wanted", "cluster"]
