"""MoCo on CIFAR-10 in a time that is given: how long an epoch takes on a GPU, and the backbone that comes out.

    python benchmarks/gpu/moco.py --data CIFAR --minutes 5 --out work_dirs/gpu-moco

``CIFAR`` has folders ``train`` and ``test``, of a folder of images for each class; the classes serve evaluation alone.
After every epoch the number of epochs becomes what the time left is enough for, and the learning rate ends with it.
What is measured is in ``moco.json`` from the first epoch on, so that a run that is cut off has left it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from odc.apis import prepare_config, train
from odc.checkpoints import load_plain

CONFIG = "moco_resnet18_1xb512-200e_cifar10"


class Budget(Hook):
    """Fit a training into so many seconds, and write down what every epoch took."""

    def __init__(self, seconds: float, out: Path, told: dict[str, Any]) -> None:
        self.seconds, self.out = seconds, out
        self.told: dict[str, Any] = {**told, "seconds_of_epochs": [], "evaluations": []}

    def before_train(self, runner: Any) -> None:
        """Start the clock."""
        self.started = self.last = time.monotonic()

    def after_train_epoch(self, runner: Any) -> None:
        """Write down how long the epoch took; plan those that are left."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.told["peak_gpu_mib"] = torch.cuda.max_memory_allocated() >> 20
        now = time.monotonic()
        self.told["seconds_of_epochs"].append(round(now - self.last, 3))
        self.last = now
        done, used = runner.epoch + 1, now - self.started
        usual = sorted(self.told["seconds_of_epochs"])[done // 2]  # the first has the images to decode
        runner.train_loop.max_epochs = done + max(0, int((self.seconds - used) / usual))
        self.write()

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Write down the evaluation; it counts as part of the next epoch's time."""
        values = {k: round(float(v), 4) for k, v in (metrics or {}).items()}
        self.told["evaluations"].append({"epoch": runner.epoch, **values})
        self.write()

    def write(self) -> None:
        """Write what is known so far."""
        self.out.write_text(json.dumps(self.told, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "gpu": gpu,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def start_of(backbone: Path, out: Path) -> Path:
    """Return the file of a backbone that both encoders start from."""
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_plain(backbone)["state_dict"].items()}
    both = state | {k.replace("backbone.", "key_encoder.0.", 1): v for k, v in state.items()}
    torch.save({"state_dict": both}, out / "start.pth")
    return out / "start.pth"


def main() -> None:
    """Train, and write the backbone in half precision beside what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lr", type=float, default=0.24)
    parser.add_argument("--split-bn", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--max-samples", type=int)
    parser.add_argument("--symmetric", action="store_true", help="each view is once the query")
    parser.add_argument("--start", type=Path, help="backbone to start from, as this leaves it")
    parser.add_argument("--workers", type=int, help="augment in so many processes, not on the GPU")
    parser.add_argument("--epochs", type=int, default=60, help="what the first epoch's learning rate goes by")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    def folder(split: str) -> dict[str, Any]:
        few = {} if args.max_samples is None else {"max_samples": args.max_samples}
        return dict(_delete_=True, type="ImageFolder", root=str(args.data / split), **few)

    options = {
        "data.dataset": folder("train"),
        "data.eval_dataset": folder("test"),
        "data.extract_batch_size": 1000,
        "model.backbone.width": args.width,
        "model.split_bn": args.split_bn,
        "model.symmetric": args.symmetric,
        "model.head.temperature": 0.1,
        "optim_wrapper.optimizer.lr": args.lr,
        "optim_wrapper.optimizer.weight_decay": 5e-4,
        "train_cfg.max_epochs": args.epochs,
        "train_cfg.val_interval": 10,
        "train_cfg.schedule.warmup": 0.02,
    }
    if args.workers is not None:
        options |= {"data.batched": False, "data.num_workers": args.workers}
    if args.max_samples is not None:  # a rehearsal
        options |= {"model.head.batch_size": 64, "model.head.queue_size": 128}
    if args.start is not None:
        options |= {"load_from": str(start_of(args.start, args.out)), "load_partial": True}
    told = {**machine(), "config": CONFIG, "options": options, "minutes": args.minutes}
    cfg = prepare_config(CONFIG, work_dir=args.out / "run", cfg_options=options, amp=True)
    budget = Budget(60 * args.minutes, args.out / "moco.json", told)
    budget.told["last"] = train(cfg, [budget])
    budget.write()
    last = Path(args.out, "run", Path((args.out / "run" / "last_checkpoint").read_text().strip()).name)
    state = load_plain(last)["state_dict"]
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items() if k.startswith("backbone.")}
    torch.save({"state_dict": half}, args.out / "backbone_fp16.pth")


if __name__ == "__main__":
    main()
