"""``compile`` of a config: ``torch.compile`` for the backbone, where a step spends its time.

It is compiled in place (``nn.Module.compile``), so parameters keep their names, and checkpoints with and without it are
the same. Heads stay as they are: they are small, and what they do depends on data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from odc.models.cluster_model import ClusterModel


def compile_backbone(model: ClusterModel, options: Mapping[str, Any]) -> None:
    """Compile the backbone, and whatever else has its architecture, as MoCo's key encoder, at their first use."""
    for module in model.modules():
        if type(module) is type(model.backbone):
            module.compile(**options)
    print_log("the backbone is compiled at its first use, which takes up to minutes", "current")
