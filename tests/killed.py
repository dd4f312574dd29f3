"""A training that the test kills: it says where it is, a line a step, and trains a small head from its config.

python killed.py CONFIG WORK_DIR [--resume]
"""

from __future__ import annotations

import sys

from small_heads import config

from odc.apis import build_runner

if __name__ == "__main__":
    name, work_dir = sys.argv[1:3]
    from mmengine.hooks import Hook

    class Tell(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):  # type: ignore[no-untyped-def]
            print(runner.iter, flush=True)

    options = {"train_cfg.max_epochs": 20, "default_hooks.checkpoint.max_keep_ckpts": 2, "train_cfg.val_interval": 20}
    runner = build_runner(config(name, work_dir, resume="--resume" in sys.argv, **options))
    runner.register_hook(Tell())
    runner.train()
