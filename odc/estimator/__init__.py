"""Deep clustering from Python, with scikit-learn's interface."""

from odc.estimator.clusterer import DeepClusterer

__all__ = ["DeepClusterer"]
