"""Arrays in, arrays out: k-means, neighbours, consensus, preprocessing; FAISS inside, no state, no modules.

What takes ``comm`` works on the rows of all ranks, each of which gives its own.
"""

from odc.clustering.confidence import confidence, margins, rank_share
from odc.clustering.consensus import agreement, consensus
from odc.clustering.consistency import local_consistency, log_odds, reliable_samples
from odc.clustering.kmeans import KMeansResult, MissingFaissError, imbalance, kmeans, kmeans_over_ranks, size_entropy
from odc.clustering.knn import knn_search
from odc.clustering.preprocess import fit_whitening, l2_normalize, l2_normalize_
from odc.clustering.sinkhorn import sinkhorn
from odc.clustering.two_level import TwoLevelResult, share_clusters, two_level_kmeans

__all__ = [
    "KMeansResult",
    "MissingFaissError",
    "TwoLevelResult",
    "agreement",
    "confidence",
    "consensus",
    "fit_whitening",
    "imbalance",
    "kmeans",
    "kmeans_over_ranks",
    "knn_search",
    "l2_normalize",
    "l2_normalize_",
    "local_consistency",
    "log_odds",
    "margins",
    "rank_share",
    "reliable_samples",
    "share_clusters",
    "sinkhorn",
    "size_entropy",
    "two_level_kmeans",
]
