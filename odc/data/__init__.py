"""Images, the views of them that training asks for, and the order in which rows are drawn."""

from odc.data.datasets import ArrayDataset, Digits, ImageDataset, LongTail, TorchvisionDataset, build_dataset
from odc.data.embeddings import Embeddings
from odc.data.image_files import FileDataset, ImageCSV, ImageFolder, ImageList
from odc.data.keyed import Cutout, RandomOps
from odc.data.keys import Draws, mix, mix_array
from odc.data.label_file import LabelFile, low_shot
from odc.data.pipeline import Pipeline
from odc.data.sampler import draw_rows
from odc.data.transforms import KeyedTransform, PixelTransform, VariantTransform, build_transform
from odc.data.views import BatchedLoader, BatchLoader, ViewDataset, ViewRequest, make_loader

__all__ = [
    "ArrayDataset",
    "BatchLoader",
    "BatchedLoader",
    "Cutout",
    "Digits",
    "Draws",
    "Embeddings",
    "FileDataset",
    "ImageCSV",
    "ImageDataset",
    "ImageFolder",
    "ImageList",
    "KeyedTransform",
    "LabelFile",
    "LongTail",
    "Pipeline",
    "PixelTransform",
    "RandomOps",
    "TorchvisionDataset",
    "VariantTransform",
    "ViewDataset",
    "ViewRequest",
    "build_dataset",
    "build_transform",
    "draw_rows",
    "low_shot",
    "make_loader",
    "mix",
    "mix_array",
]
