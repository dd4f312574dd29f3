"""A portable model as one graph for other programs: transforms of pixels, networks, head; run once before it is kept.

The graph takes uint8 (B, C, S, S), pictures of the size that the networks see, and gives ``cluster`` (B,) int64 and
``scores`` (B, K) float32; B is free. What gives a picture that size is not in the graph: resizing differs in its bits
from program to program. Its transforms stand in the file (``prepare``), beside the names of the clusters.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odc.clustering import margins
from odc.errors import InputError, one_line
from odc.files import writable_file, written_whole
from odc.portable import PortableModel
from odc.portable.files import model_folder
from odc.results.clustering import ABOUT, Clustering
from odc.structures import make_generator

ONNX, TORCH = "onnx", "torch-export"
ENDINGS = {ONNX: ".onnx", TORCH: ".pt2"}
TOLERANCE = 1e-3  # difference of scores, as a share of how far those of an image are apart
_SHOWN = 12  # pictures that it is tried on
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_NOTES = "odc.json"  # of a torch-export file: what an ONNX file has as metadata

Run = Callable[[Tensor], tuple[npt.NDArray[Any], npt.NDArray[Any]]]


@dataclass(frozen=True)
class Exported:
    """How an export went."""

    file: Path | None  # None: it was not kept
    shape: tuple[int, int, int]  # (C, S, S) of the input
    pictures: str  # what it was tried on
    difference: float  # largest of the scores, as a share of how far those of an image are apart
    other: int  # pictures that got another cluster, though their two best scores differ by more than that
    bytes: int

    def __str__(self) -> str:
        C, H, W = self.shape
        others = f"{self.other or 'no'} clusters are others"
        told = f"scores differ by at most {self.difference:.1e} of their range, {others}, on {self.pictures}"
        if self.file is None:
            return f"nothing was written: {told}; at most {TOLERANCE:g} of it and no cluster may be another"
        return (
            f"{self.file}: uint8 (B, {C}, {H}, {W}) to cluster and scores, {self.bytes / 2**20:.1f} MiB; against the "
            f"model here {told}"
        )

    def describe(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        finite = self.difference if np.isfinite(self.difference) else None
        return {**values, "file": None if self.file is None else str(self.file), "difference": finite}


def export(folder: str | Path, form: str, out: str | Path | None = None, size: int | None = None) -> Exported:
    """Write a portable model as ``onnx`` or ``torch-export``, if it does what the model does.

    It is read back and run, ONNX by onnxruntime, in batches of one and of several, on pictures of the clustering where
    they are still there, else on noise.

    Args:
        folder: of the model, or of the clustering that it lies in.
        form: ``"onnx"`` or ``"torch-export"``.
        out: file to write; by default ``model.onnx`` or ``model.pt2`` beside the model.
        size: side of the input in pixels where the networks take pictures of any size.

    Raises:
        InputError: there is no model, its networks have no common input or it takes vectors, a package is missing, or a
            part of it has no such form.
    """
    if form not in ENDINGS:
        raise InputError(f"a model is exported as {' or '.join(ENDINGS)}, not {form}")
    lacking = [name for name in _NEEDED if form == ONNX and importlib.util.find_spec(name) is None]
    if lacking:
        raise InputError(
            f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed, which ONNX needs: pip install "
            "'online-deep-clustering[export]', or take --format torch-export"
        )
    folder = Path(folder)
    model = PortableModel.load(folder)
    file = writable_file(out or model_folder(folder) / f"model{ENDINGS[form]}")
    shape = _shape(model, size)
    module = model.module().cpu()
    tried, told = _pictures(model, folder, shape)
    notes = {
        "names": json.dumps({str(c): name for c, name in sorted(model.names.items())}),
        "prepare": json.dumps(list(map(dict, model.prepare))),
        "num_clusters": str(model.num_clusters),
    }
    try:
        with _quiet(), torch.no_grad():
            content, run = (_onnx if form == ONNX else _torch)(module, tried[:2], notes)
    except Exception as error:  # what a part leads the exporters to
        raise InputError(
            f"this model has no form as {form}: a part of it cannot be exported ({one_line(error)[:300]})"
        ) from error
    with _quiet(), torch.no_grad():
        expected = module(tried)[1].numpy()
        parts = [run(tried[:1]), run(tried[1:])]
    cluster, scores = (np.concatenate(both) for both in zip(*parts, strict=True))
    difference, other = compare(expected, cluster, scores)
    kept = difference <= TOLERANCE and other == 0
    if kept:
        with written_whole(file) as opened:
            opened.write(content)
    return Exported(file if kept else None, shape, told, difference, other, len(content))


def compare(expected: npt.NDArray[Any], cluster: npt.NDArray[Any], scores: npt.NDArray[Any]) -> tuple[float, int]:
    """Return how far scores (B, K) differ, and how many clusters (B,) are others than those of the ``expected`` scores.

    Differences are shares of the range of an image's finite scores, infinity where scores are not finite in the same
    places. A cluster may be another where the two best scores are closer than the scores differ.
    """
    finite = np.isfinite(expected)
    if scores.shape != expected.shape or not np.array_equal(finite, np.isfinite(scores)):
        return float("inf"), int((cluster != expected.argmax(1)).sum())
    high, low = np.where(finite, expected, -np.inf).max(1), np.where(finite, expected, np.inf).min(1)
    away = np.abs(np.where(finite, scores, 0) - np.where(finite, expected, 0)).max(1)
    difference = float((away / np.maximum(high - low, 1e-6)).max())
    decided = margins(torch.from_numpy(expected)).numpy() > 2 * away
    return difference, int(((cluster != expected.argmax(1)) & decided).sum())


def _shape(model: PortableModel, size: int | None) -> tuple[int, int, int]:
    shape = model.input_shape
    if shape is None:
        if size is None:
            raise InputError("the networks of this model take pictures of any size: say which with --size")
        channels = model.networks[0].spec["channels"]
        return channels, size, size
    if size not in (None, shape[1]):
        raise InputError(f"--size {size}: the networks of this model see pictures at {shape[1]} pixels")
    return shape


def _pictures(model: PortableModel, folder: Path, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """Return uint8 (B, C, S, S), B at least 2, and what they are."""
    found = []
    place = next((f for f in (folder, folder.parent) if (f / ABOUT).is_file()), None)
    if place is not None and model.input_shape is not None:
        clustering = Clustering.load(place)
        step = max(1, len(clustering) // _SHOWN)
        for path in clustering.paths[::step][:_SHOWN]:
            with contextlib.suppress(InputError):
                found.append(model.decode(os.path.join(clustering.root, path)))
    if len(found) >= 2:
        return model.prepared(found), f"{len(found)} pictures of the clustering"
    noise = torch.randint(0, 256, (_SHOWN, *shape), generator=make_generator(0, "export"), dtype=torch.uint8)
    noise[::2] = noise[::2, :, :1, :1]  # some are of one colour: noise alone is the same to many networks
    return noise, f"{_SHOWN} pictures of noise and single colours"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters tell about themselves off the terminal: what goes wrong is an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _program(module: torch.nn.Module, example: Tensor) -> Any:
    return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _torch(module: torch.nn.Module, example: Tensor, notes: dict[str, str]) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.export.save(_program(module, example), buffer, extra_files={_NOTES: json.dumps(notes)})
    again = torch.export.load(io.BytesIO(buffer.getvalue())).module()

    def run(images: Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        cluster, scores = again(images)
        return cluster.numpy(), scores.numpy()

    return buffer.getvalue(), run


def _onnx(module: torch.nn.Module, example: Tensor, notes: dict[str, str]) -> tuple[bytes, Run]:
    import onnxruntime

    outputs = ["cluster", "scores"]
    program = torch.onnx.export(
        _program(module, example), dynamo=True, verbose=False, input_names=["images"], output_names=outputs
    )
    assert program is not None
    proto = program.model_proto
    for key, value in notes.items():
        proto.metadata_props.add(key=f"odc.{key}", value=value)
    content = proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        cluster, scores = session.run(outputs, {"images": images.numpy()})
        return cluster, scores

    return content, run
