"""How good a clustering is."""

from odc.evaluation.metrics import (
    ari,
    cluster_entropy,
    clustering_accuracy,
    empty_clusters,
    evaluate_clustering,
    knn_accuracy,
    label_churn,
    nmi,
)

__all__ = [
    "ari",
    "cluster_entropy",
    "clustering_accuracy",
    "empty_clusters",
    "evaluate_clustering",
    "knn_accuracy",
    "label_churn",
    "nmi",
]
