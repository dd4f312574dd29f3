"""Deep clustering of images: interchangeable heads over self-supervised backbones, under one mmengine-style runner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odc.estimator import DeepClusterer

__all__ = ["DeepClusterer", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for first here: most of the package is used without it."""
    if name == "DeepClusterer":
        from odc.estimator import DeepClusterer

        return DeepClusterer
    raise AttributeError(f"module 'odc' has no attribute '{name}'")
