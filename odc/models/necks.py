"""Necks: what a backbone gives, (B, D, h, w) or (B, D), to the features z (B, D') that heads see.

Every neck takes ``in_channels`` (the backbone's ``out_channels``) and has ``out_channels``.
"""

from __future__ import annotations

from torch import Tensor, nn

from odc.registry import NECKS


def pool(features: Tensor) -> Tensor:
    """Average (B, D, h, w) over the image; (B, D) passes as it is."""
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features


@NECKS.register_module()
class AvgPool(nn.Module):
    """Global average pooling; pooled features pass as they are."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.out_channels = in_channels

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D, h, w) or (B, D) to (B, D)."""
        return pool(features)


@NECKS.register_module()
class ODCNeck(nn.Module):
    """ODC's neck (Zhan et al. 2020): average pooling, fc – BN – ReLU – dropout – fc – ReLU; dropped downstream.

    Its batch norm has no affine parameters.

    Args:
        in_channels: the backbone's D.
        hidden_channels: width between the two layers; 512 in the paper.
        out_channels: D of the memory; 256 in the paper.
        dropout: probability, 0.5 in the paper.
        bn_momentum: of the batch norm's running statistics. The paper's 0.001 needs thousands of steps before they
            describe the features; a short training needs more.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 512,
        out_channels: int = 256,
        dropout: float = 0.5,
        bn_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.layers = nn.Sequential(
            nn.Linear(in_channels, hidden_channels),
            nn.BatchNorm1d(hidden_channels, momentum=bn_momentum, affine=False),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden_channels, out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, D, h, w) or (B, D) to (B, out_channels), non-negative."""
        z: Tensor = self.layers(pool(features))
        return z
