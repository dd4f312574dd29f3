"""One rank of two: trains every small head, whole and resumed, and writes digests of what was learnt."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from small_heads import HEAD_CONFIGS, config

from odc.apis import build_runner

EVERY_STEP = {"default_hooks.checkpoint": dict(type="CheckpointHook", by_epoch=False, interval=1, max_keep_ckpts=99)}


def digests(runner: Any) -> dict[str, str]:
    """Return a digest of each tensor of the model, so that a difference has a name."""
    return {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        for name, tensor in runner.model.module.state_dict().items()
    }


def main(folder: Path) -> None:
    results = {}
    rank = 0
    for name in HEAD_CONFIGS:
        whole = build_runner(config(name, str(folder / name), launcher="pytorch", **EVERY_STEP))
        whole.train()
        middle = folder / name / "iter_3.pth"
        again = build_runner(
            config(name, str(folder / f"{name}-again"), launcher="pytorch", resume=True, load_from=str(middle))
        )
        again.train()
        results[name] = {"whole": digests(whole), "resumed": digests(again)}
        rank = whole.rank
    os.environ["ODC_BFLOAT16"] = str(1 - rank)  # the second rank must not
    one = build_runner(config("dc", str(folder / "one"), launcher="pytorch", precision="auto"))
    one.train()
    results["precision"] = {"whole": {"precision": one.precision}}
    (folder / f"rank{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
