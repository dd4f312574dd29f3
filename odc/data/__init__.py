"""Images, the views of them that training asks for, and the order in which rows are drawn."""

from odc.data.datasets import ArrayDataset, Digits, ImageDataset, build_dataset
from odc.data.embeddings import Embeddings
from odc.data.features import Features
from odc.data.image_array import ImageArray
from odc.data.image_files import FileDataset
from odc.data.keyed import Cutout, RandomOps
from odc.data.label_file import LabelFile, low_shot
from odc.data.shrunk import Shrunk
from odc.data.transforms import KeyedTransform, PixelTransform, VariantTransform

__all__ = [
    "ArrayDataset",
    "Cutout",
    "Digits",
    "Embeddings",
    "Features",
    "FileDataset",
    "ImageArray",
    "ImageDataset",
    "KeyedTransform",
    "LabelFile",
    "PixelTransform",
    "RandomOps",
    "Shrunk",
    "VariantTransform",
    "build_dataset",
    "low_shot",
]
