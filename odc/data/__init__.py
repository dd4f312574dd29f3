"""Images, the views of them that training asks for, and the order in which rows are drawn."""

from odc.data.batched import BatchedPipeline
from odc.data.datasets import ArrayDataset, Digits, ImageDataset, LongTail, TorchvisionDataset
from odc.data.embeddings import Embeddings
from odc.data.image_files import FileDataset, ImageCSV, ImageFolder, ImageList
from odc.data.label_file import LabelFile, low_shot
from odc.data.sampler import draw_rows
from odc.data.transforms import Pipeline, PixelTransform, VariantTransform, build_transform
from odc.data.views import BatchedLoader, BatchLoader, ViewDataset, ViewRequest, make_loader, mix, mix_array

__all__ = [
    "ArrayDataset",
    "BatchLoader",
    "BatchedLoader",
    "BatchedPipeline",
    "Digits",
    "Embeddings",
    "FileDataset",
    "ImageCSV",
    "ImageDataset",
    "ImageFolder",
    "ImageList",
    "LabelFile",
    "LongTail",
    "Pipeline",
    "PixelTransform",
    "TorchvisionDataset",
    "VariantTransform",
    "ViewDataset",
    "ViewRequest",
    "build_transform",
    "draw_rows",
    "low_shot",
    "make_loader",
    "mix",
    "mix_array",
]
