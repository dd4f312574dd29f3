"""Clustering heads: one file a method, its paper on top."""

from odc.heads.base import ClusterHead, LinearClassifier, weighted_mean
from odc.heads.byol import BYOLHead
from odc.heads.classifier import ClassifierHead
from odc.heads.dcboost import DCBoostHead
from odc.heads.deepcluster import DeepClusterHead
from odc.heads.deepercluster import DeeperClusterHead
from odc.heads.moco import MoCoHead
from odc.heads.odc import ODCHead
from odc.heads.propos import ProPosHead
from odc.heads.scan import SCANHead
from odc.heads.secu import SeCuHead
from odc.heads.selflabel import SelfLabelHead
from odc.heads.spice import SpiceSelfHead
from odc.heads.spice_semi import SpiceSemiHead
from odc.heads.temi import TEMIHead
from odc.heads.turtle import TurtleHead

__all__ = [
    "BYOLHead",
    "ClassifierHead",
    "ClusterHead",
    "DCBoostHead",
    "DeepClusterHead",
    "DeeperClusterHead",
    "LinearClassifier",
    "MoCoHead",
    "ODCHead",
    "ProPosHead",
    "SCANHead",
    "SeCuHead",
    "SelfLabelHead",
    "SpiceSelfHead",
    "SpiceSemiHead",
    "TEMIHead",
    "TurtleHead",
    "weighted_mean",
]
