"""What a view costs, in memory and in a worker, next to the network that it must feed and to torchvision's own form.

The views and the networks of the first table are those of the shipped configs: the digits' ``train`` view at 16×16 with
the ConvNet, and MoCo v2's and the strong view at 32×32 with ResNet-18 of width 16. "In memory" and "as needed" are the
two loaders with all that they do for a batch, from its requests to float32 images on the device, in the main process.
"Network" is the backbone's forward and backward pass on such a batch, without head, loss and optimiser.

The second table is one thread of a worker: CPU time in microseconds an image, from decoded images to float32. "v2" are
torchvision's transforms, image after image, with a generator seeded for each; "alone" is the pipeline with one image a
call; "together" what a worker does, a batch a call. The crops are RandomCrop with padding, and a flip; MoCo's view is
the config's, with a blur as wide as a tenth of the image; photographs differ in size, about 375×500.

All parts of a case are timed in turn. What is shown is the median of the repeats, and a ratio is the median of each
repeat's own.

    python benchmarks/speed/augmentation.py                      # one thread, on the CPU
    python benchmarks/speed/augmentation.py --device cuda --json augmentation.json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from mmengine.logging import MMLogger
from torch import Tensor

from odc.comparison.provenance import cpu_model
from odc.config import load_config
from odc.data import ArrayDataset
from odc.data.keys import mix_array
from odc.data.pipeline import Pipeline
from odc.data.transforms import build_transform
from odc.data.views import BatchedLoader, BatchLoader, ViewDataset, ViewRequest
from odc.models.backbones import ConvNet, ResNet

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "_base_" / "datasets"
# name: (config of the data, view, channels, side, backbone)
CASES: dict[str, tuple[str, str, int, int, Callable[[], torch.nn.Module]]] = {
    "digits": ("digits.py", "train", 1, 16, lambda: ConvNet(1, (16, 32, 64))),
    "moco32": ("folder32.py", "query", 3, 32, lambda: ResNet(18, "cifar", width=16)),
    "strong32": ("folder32.py", "strong", 3, 32, lambda: ResNet(18, "cifar", width=16)),
}


def crops(side: int) -> list[dict[str, Any]]:
    """Return the plain view: a padded crop and a flip."""
    return [dict(type="RandomCrop", size=side, padding=side // 8), dict(type="RandomHorizontalFlip")]


def moco(side: int) -> list[dict[str, Any]]:
    """Return MoCo v2's view."""
    jitter = dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    blur = dict(type="GaussianBlur", kernel_size=side // 20 * 2 + 1, sigma=[0.1, 2.0])
    return [
        dict(type="RandomResizedCrop", size=side, scale=[0.2, 1.0]),
        dict(type="RandomApply", p=0.8, transforms=[jitter]),
        dict(type="RandomGrayscale", p=0.2),
        dict(type="RandomApply", p=0.5, transforms=[blur]),
        dict(type="RandomHorizontalFlip"),
    ]


# name: (view, sizes of the images)
WORKER: dict[str, tuple[list[dict[str, Any]], list[tuple[int, int]]]] = {
    "crop+flip 32": (crops(32), [(32, 32)]),
    "moco 32": (moco(32), [(32, 32)]),
    "moco 96": (moco(96), [(96, 96)]),
    "crop+flip 224": (crops(224), [(224, 224)]),
    "moco 224": (moco(224), [(224, 224)]),
    "moco 224 of photos": (moco(224), [(375 + 3 * i, 500 - 5 * i) for i in range(32)]),
    "resized crop+flip 224 of photos": (
        [moco(224)[0], moco(224)[-1]],
        [(375 + 3 * i, 500 - 5 * i) for i in range(32)],
    ),
}


def smooth_images(n: int, channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return images uint8 (n, channels, *size) with smooth parts and noise."""
    coarse = torch.rand(n, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    noise = torch.rand(n, channels, *size, generator=generator)
    return ((0.8 * smooth + 0.2 * noise) * 255).to(torch.uint8)


def in_turn(
    parts: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of each part's repeats, run in turn after one round to warm up."""
    wait: Callable[[], object] = torch.cuda.synchronize if torch.device(device).type == "cuda" else dict
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for repeat in range(repeats + 1):
        for part, work in parts.items():
            wait()
            start = clock()
            work()
            wait()
            if repeat:
                seconds[part].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], part: str, over: str) -> float:
    """Return the median of the repeats' ratios."""
    return statistics.median(a / b for a, b in zip(seconds[part], seconds[over], strict=True))


def run_case(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time loaders and network of one case in turn."""
    config, view, channels, side, make_backbone = CASES[name]
    B = args.batch
    generator = torch.Generator().manual_seed(0)
    images = smooth_images(4 * B, channels, (side, side), generator)
    transforms = load_config(CONFIGS / config).data.views[view]
    dataset = ViewDataset(ArrayDataset(images, [f"{i:06d}" for i in range(len(images))]), {view: Pipeline(transforms)})
    batched, as_needed = BatchedLoader(dataset, args.device), BatchLoader(dataset, 0)
    backbone = make_backbone().to(args.device).train()
    batch: Tensor = next(batched.run([[ViewRequest("", view, (i,), 0, i) for i in range(B)]]))["", view][:, 0]
    done = 0

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

    parts = {"in memory": lambda: load(batched), "as needed": lambda: load(as_needed), "network": train}
    seconds = in_turn(parts, args.repeats, args.device)
    return {
        "case": name,
        "view": view,
        "image": [channels, side, side],
        "images_per_s": {part: B / statistics.median(times) for part, times in seconds.items()},
        "seconds": seconds,
        "network_over_in_memory": ratio(seconds, "network", "in memory"),
    }


def run_worker(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time one view by torchvision's transforms and by ours, alone and together, in turn."""
    transforms, sizes = WORKER[name]
    closing: list[dict[str, Any]] = [dict(type="ToFloat"), dict(type="Normalize", mean=[0.5] * 3, std=[0.25] * 3)]
    generator = torch.Generator().manual_seed(0)
    images = [smooth_images(1, 3, sizes[i % len(sizes)], generator)[0] for i in range(32)]
    keys = torch.from_numpy(mix_array(1, np.arange(len(images))))
    view, built = Pipeline([*transforms, *closing]), [build_transform(t) for t in transforms]
    finish = [build_transform(t) for t in closing]

    def v2() -> None:
        state, out = torch.default_generator.get_state(), []
        for image, key in zip(images, keys.tolist(), strict=True):
            torch.default_generator.manual_seed(key)
            out.append(functools.reduce(lambda x, transform: transform(x), built, image))
        torch.default_generator.set_state(state)
        functools.reduce(lambda x, transform: transform(x), finish, torch.stack(out))

    def alone() -> None:
        torch.cat([view([image], key[None]) for image, key in zip(images, keys, strict=True)])

    parts = {"v2": v2, "alone": alone, "together": lambda: view(images, keys)}
    seconds = in_turn(parts, args.repeats, clock=time.process_time)
    return {
        "case": name,
        "us_per_image": {part: statistics.median(times) / len(images) * 1e6 for part, times in seconds.items()},
        "seconds": seconds,
        "over_v2": {part: ratio(seconds, part, "v2") for part in ("alone", "together")},
    }


def main() -> None:
    """Run the benchmark and print, and with ``--json`` write, the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *WORKER], default=[*CASES, *WORKER], help="(all)")
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
        f"{'images/s':32}{'in memory':>10}{'as needed':>10}{'network':>10}   in memory is"
    )
    for name in (name for name in args.cases if name in CASES):
        case = run_case(name, args)
        result["cases"].append(case)
        rates = "".join(f"{rate:10,.0f}" for rate in case["images_per_s"].values())
        print(f"{name:32}{rates}   {case['network_over_in_memory']:.1f} x the network")
    torch.set_num_threads(1)
    print(f"{'us/image, one thread of a worker':32}{'v2':>10}{'alone':>10}{'together':>10}   alone and together are")
    for name in (name for name in args.cases if name in WORKER):
        case = run_worker(name, args)
        result["cases"].append(case)
        times = "".join(f"{us:10,.0f}" for us in case["us_per_image"].values())
        print(f"{name:32}{times}   {case['over_v2']['alone']:.2f} and {case['over_v2']['together']:.2f} of v2's time")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
