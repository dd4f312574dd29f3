"""Images per second of the batched augmentation, of the one image by image, and of the network that both must feed.

The view and the network of a case are those of the shipped configs: the digits' ``train`` view at 16×16 with the
ConvNet, and MoCo v2's view at 32×32 with ResNet-18 of width 16. "Batched" and "one by one" are the two loaders with all
that they do for a batch, from its requests to float32 images on the device, in the main process. "Network" is the
backbone's forward and backward pass on such a batch, without head, loss and optimiser. The three are timed in turn;
what is shown is the median of the repeats, and the ratio is the median of each repeat's own.

    python benchmarks/speed/augmentation.py                      # 256 images, one thread, on the CPU
    python benchmarks/speed/augmentation.py --device cuda --json augmentation.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from mmengine.logging import MMLogger
from torch import Tensor

from odc.comparison.provenance import cpu_model
from odc.config import load_config
from odc.data import ArrayDataset, BatchedLoader, BatchLoader, Pipeline, ViewDataset, ViewRequest, mix_array
from odc.models.backbones import ConvNet, ResNet

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "_base_" / "datasets"
# name: (config of the data, view, channels, side, backbone)
CASES: dict[str, tuple[str, str, int, int, Callable[[], torch.nn.Module]]] = {
    "digits": ("digits.py", "train", 1, 16, lambda: ConvNet(1, (16, 32, 64))),
    "moco32": ("folder32.py", "query", 3, 32, lambda: ResNet(18, "cifar", width=16)),
    "strong32": ("folder32.py", "strong", 3, 32, lambda: ResNet(18, "cifar", width=16)),
}


def smooth_images(n: int, channels: int, side: int, generator: torch.Generator) -> Tensor:
    """Return images uint8 (n, channels, side, side) with smooth parts and noise."""
    coarse = torch.rand(n, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    noise = torch.rand(n, channels, side, side, generator=generator)
    return ((0.8 * smooth + 0.2 * noise) * 255).to(torch.uint8)


def run_case(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time the three of one case in turn."""
    config, view, channels, side, make_backbone = CASES[name]
    B = args.batch
    generator = torch.Generator().manual_seed(0)
    images = smooth_images(4 * B, channels, side, generator)
    transforms = load_config(CONFIGS / config).data.views[view]
    dataset = ViewDataset(ArrayDataset(images, [f"{i:06d}" for i in range(len(images))]), {view: Pipeline(transforms)})
    batched, one_by_one = BatchedLoader(dataset, 0, args.device), BatchLoader(dataset, 0)
    backbone = make_backbone().to(args.device).train()
    batch: Tensor = next(batched.run([[ViewRequest("", view, (i,), 0, i) for i in range(B)]]))["", view][:, 0]
    done = 0

    def wait() -> None:
        if torch.device(args.device).type == "cuda":
            torch.cuda.synchronize()

    def load(loader: BatchedLoader | BatchLoader) -> None:
        nonlocal done
        done += 1
        ids = torch.randint(len(images), (B,), generator=generator).tolist()
        keys = mix_array(done, np.arange(B)).tolist()
        requests = [ViewRequest("", view, (i,), 0, key) for i, key in zip(ids, keys, strict=True)]
        for views in loader.run([requests]):
            views["", view].to(args.device)

    def train() -> None:
        backbone.zero_grad(set_to_none=True)
        backbone(batch).mean().backward()

    parts: dict[str, Callable[[], None]] = {
        "batched": lambda: load(batched),
        "one by one": lambda: load(one_by_one),
        "network": train,
    }
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for repeat in range(args.repeats + 1):
        for part, work in parts.items():
            wait()
            start = time.perf_counter()
            work()
            wait()
            if repeat:  # the first is a warm-up
                seconds[part].append(time.perf_counter() - start)
    result: dict[str, Any] = {
        "case": name,
        "view": view,
        "image": [channels, side, side],
        "images_per_s": {part: B / statistics.median(times) for part, times in seconds.items()},
        "seconds": seconds,
    }
    for part in ("one by one", "network"):
        ratios = [other / own for own, other in zip(seconds["batched"], seconds[part], strict=True)]
        result[f"batched_over_{part.replace(' ', '_')}"] = statistics.median(ratios)
    return result


def main() -> None:
    """Run the benchmark and print, and with ``--json`` write, the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="(default: all)")
    parser.add_argument("--batch", type=int, default=256, help="images a batch (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="of each, in turn (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="of the model and the images (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    MMLogger.get_instance("augmentation", log_level="WARNING")

    cuda = torch.device(args.device).type == "cuda"
    result: dict[str, Any] = {
        "batch": args.batch,
        "repeats": args.repeats,
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cases": [],
    }
    print(
        f"{args.batch} images a batch, n={args.repeats} repeats, {args.threads} thread(s), device {result['device']}, "
        f"{result['cpu']}, torch {torch.__version__}, torchvision {torchvision.__version__}\n"
        f"{'images/s':10}{'batched':>10}{'one by one':>12}{'network':>10}   batched is"
    )
    for name in args.cases:
        case = run_case(name, args)
        result["cases"].append(case)
        rates = case["images_per_s"]
        print(
            f"{name:10}{rates['batched']:10,.0f}{rates['one by one']:12,.0f}{rates['network']:10,.0f}   "
            f"{case['batched_over_one_by_one']:.1f} x one by one, {case['batched_over_network']:.1f} x the network"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
