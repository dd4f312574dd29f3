"""How good a clustering is, and what the features behind it are worth."""

from odc.evaluation.metrics import (
    ari,
    cluster_entropy,
    clustering_accuracy,
    empty_clusters,
    evaluate_clustering,
    knn_accuracy,
    label_churn,
    majorities,
    nmi,
)
from odc.evaluation.probes import knn_probe, linear_probe, low_shot_probe, run_probes, stratified_split

__all__ = [
    "ari",
    "cluster_entropy",
    "clustering_accuracy",
    "empty_clusters",
    "evaluate_clustering",
    "knn_accuracy",
    "knn_probe",
    "label_churn",
    "linear_probe",
    "low_shot_probe",
    "majorities",
    "nmi",
    "run_probes",
    "stratified_split",
]
