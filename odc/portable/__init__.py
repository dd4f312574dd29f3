"""A clustering for new images: a folder of JSON and safetensors, without pickles, and without what trained it."""

from odc.portable.model import PortableModel, Predictions
from odc.portable.packing import pack

__all__ = ["PortableModel", "Predictions", "pack"]
