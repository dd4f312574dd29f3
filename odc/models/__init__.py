"""Backbones, necks, and the model that joins them to a clustering head."""

from odc.models.backbones import ConvNet, ResNet
from odc.models.byol import BYOL
from odc.models.cluster_model import ClusterModel
from odc.models.libraries import TimmBackbone, TorchvisionBackbone
from odc.models.moco import MoCo
from odc.models.necks import AvgPool, ODCNeck

__all__ = [
    "BYOL",
    "AvgPool",
    "ClusterModel",
    "ConvNet",
    "MoCo",
    "ODCNeck",
    "ResNet",
    "TimmBackbone",
    "TorchvisionBackbone",
]
