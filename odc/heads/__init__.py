"""Clustering heads: one file a method, its paper on top."""

from odc.heads.base import ClusterHead, reset_linear, weighted_mean
from odc.heads.deepcluster import DeepClusterHead
from odc.heads.moco import MoCoHead
from odc.heads.odc import ODCHead

__all__ = ["ClusterHead", "DeepClusterHead", "MoCoHead", "ODCHead", "reset_linear", "weighted_mean"]
