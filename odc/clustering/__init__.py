"""Arrays in, arrays out: k-means, nearest neighbours and preprocessing; FAISS inside, no state, no modules."""

from odc.clustering.kmeans import KMeansResult, KMeansStats, MissingFaissError, kmeans
from odc.clustering.knn import knn_search
from odc.clustering.preprocess import Whitening, fit_whitening, l2_normalize

__all__ = [
    "KMeansResult",
    "KMeansStats",
    "MissingFaissError",
    "Whitening",
    "fit_whitening",
    "kmeans",
    "knn_search",
    "l2_normalize",
]
