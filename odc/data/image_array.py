"""Images of one shape in a file of NumPy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from odc.data.datasets import ArrayDataset
from odc.errors import InputError
from odc.files import open_regular
from odc.reading import reading
from odc.registry import DATASETS


@DATASETS.register_module()
class ImageArray(ArrayDataset):
    """The images of a ``.npy`` file, uint8 (N, C, H, W); they are mapped, not read. Without names and labels.

    Their names are their places in the file, ``000000`` and so on.

    Raises InputError where the file is missing, damaged, or holds anything else.
    """

    def __init__(self, file: str) -> None:
        path = Path(file)
        if not path.is_file():
            raise InputError(f"images '{file}' do not exist (looked at {path.absolute()}): numpy.save writes them")
        with reading(path, "is no array of images", "write it anew with numpy.save"):
            with open_regular(path):
                pass
            images = np.load(path, mmap_mode="c", allow_pickle=False)
            if not isinstance(images, np.memmap):
                raise ValueError("it holds several arrays")
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise InputError(f"'{file}' holds {images.dtype} {images.shape}, not images uint8 (N, C, H, W)")
        digits = max(6, len(str(len(images) - 1)))
        names = [f"{i:0{digits}d}" for i in range(len(images))]
        super().__init__(torch.from_numpy(images), names, origin=f"in {file}")
