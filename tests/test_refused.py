"""Whatever mmengine has a name for works, or is refused before training with the name of what to use here.

The names are mmengine's own registries', so one that a new version brings shows up here.
"""

from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import mmengine
import mmengine.optim
import mmengine.visualization
import pytest
import torch
from mmengine import Config
from mmengine.registry import HOOKS, LOOPS, MODEL_WRAPPERS, OPTIM_WRAPPERS, OPTIMIZERS, VISBACKENDS, Registry
from small_heads import config

from odc.apis import build_runner, prepare_config, train
from odc.config.checking import PACKAGES, check_config, check_parts, check_seed
from odc.errors import InputError
from odc.refused import REFUSED_KEYS, REFUSED_TYPES
from odc.registry import HOOKS as OUR_HOOKS

# Options that a type cannot do without.
NEEDED: dict[str, dict[str, Any]] = {
    "EarlyStoppingHook": dict(monitor="nmi"),
    "PrepareTTAHook": dict(tta_cfg={}),
    "SGD": dict(lr=0.01),
}


@OUR_HOOKS.register_module(force=True)
class Interrupt(mmengine.hooks.Hook):
    """Asks the training to stop after the second evaluation."""

    priority = "VERY_LOW"

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if runner.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)


SHORT = {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1}


def names(registry: Registry) -> list[str]:
    registry.import_from_location()
    own = [name for name, kind in registry.module_dict.items() if kind.__module__.startswith(("mmengine.", "torch."))]
    return sorted(own)


def works_or_is_refused(cfg: Config, name: str) -> None:
    if name in REFUSED_TYPES:
        with pytest.raises(InputError, match=re.escape(REFUSED_TYPES[name])) as error:
            build_runner(cfg)
        assert "\n" not in str(error.value)
    else:
        assert all(math.isfinite(value) for value in train(cfg).values())


@pytest.mark.parametrize("name", names(HOOKS))
def test_hooks(name: str, tmp_path: Path) -> None:
    hooks = [dict(type="ProgressHook"), dict(type=name, **NEEDED.get(name, {}))]
    works_or_is_refused(config("odc", str(tmp_path), custom_hooks=hooks, **SHORT), name)


QUICK = {"SGD", "AdamW", *REFUSED_TYPES}  # the others train, too, in the long checks


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names(OPTIMIZERS)]
)
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_optimizers(name: str, tmp_path: Path) -> None:
    """Trained and resumed: the state of the optimiser is in the checkpoint."""
    optimizer = {"optim_wrapper.optimizer": dict(type=name, _delete_=True, **NEEDED.get(name, {}))}
    works_or_is_refused(config("dc", str(tmp_path), **optimizer, **SHORT), name)
    if name not in REFUSED_TYPES:
        again = {"resume": True, "train_cfg.max_epochs": 2, "val_evaluator": None}
        train(config("dc", str(tmp_path), **optimizer, **again))


@pytest.mark.parametrize("name", [*names(OPTIM_WRAPPERS), "OptimWrapperDict"])
def test_optim_wrappers(name: str, tmp_path: Path) -> None:
    works_or_is_refused(config("dc", str(tmp_path), **{"optim_wrapper.type": name}, **SHORT), name)


@pytest.mark.parametrize("name", names(MODEL_WRAPPERS))
def test_model_wrappers(name: str, tmp_path: Path) -> None:
    works_or_is_refused(config("dc", str(tmp_path), model_wrapper_cfg=dict(type=name), **SHORT), name)


@pytest.mark.parametrize("name", names(LOOPS))
def test_loops(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'train_cfg.type' is not for this training: one loop trains every method"):
        check_config(config("dc", str(tmp_path), **{"train_cfg.type": name}))


@pytest.mark.parametrize("name", names(VISBACKENDS))
def test_visualizers(name: str, tmp_path: Path) -> None:
    cfg = config("dc", str(tmp_path), visualizer=dict(type="Visualizer", vis_backends=[dict(type=name)]), **SHORT)
    if name in PACKAGES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(PACKAGES, name, "no_such_package")
            with pytest.raises(InputError, match=f"{name} needs the package no_such_package: pip install no_such"):
                check_parts(cfg)
    else:
        works_or_is_refused(cfg, name)


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_keys(key: str, tmp_path: Path) -> None:
    cfg = config("dc", str(tmp_path), **{key: dict(type="X")})
    with pytest.raises(InputError, match=re.escape(f"'{key}' is not for this training: {REFUSED_KEYS[key]}")):
        check_config(cfg)
    cfg.merge_from_dict({key: None})
    check_config(cfg)


@pytest.mark.parametrize(
    "options",
    [
        dict(find_unused_parameters=True),
        dict(model_wrapper_cfg=dict(static_graph=True, gradient_as_bucket_view=True)),
        dict(env_cfg=dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork"), dist_cfg=dict(backend="gloo"))),
        dict(log_processor=dict(window_size=2, by_epoch=True)),
        dict(randomness=dict(seed=1, deterministic=False, diff_rank_seed=False)),
        dict(auto_scale_lr=dict(enable=False, base_batch_size=256)),
        {"default_hooks.checkpoint": dict(type="CheckpointHook", interval=1, save_begin=1, filename_tmpl="e{}")},
        dict(custom_hooks=[dict(type="LoggerHook", interval=1, ignore_last=False, log_metric_by_epoch=False)]),
        {"default_hooks.checkpoint": dict(type="CheckpointHook", interval=1, published_keys=["meta", "state_dict"])},
        {"default_hooks.checkpoint": dict(type="CheckpointHook", interval=2, by_epoch=False, save_optimizer=False)},
    ],
)
def test_options_that_work(options: dict[str, Any], tmp_path: Path) -> None:
    cfg = config("odc", str(tmp_path), **SHORT, **options)
    check_config(cfg)
    train(cfg)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            dict(model_wrapper_cfg=dict(find_unused=True)),
            "no option 'find_unused'; did you mean 'find_unused_parameters'",
        ),
        (dict(env_cfg=dict(mp_cfg=dict(mp_start_method="thread"))), "mp_start_method must be one of"),
        (dict(resume="yes"), "resume must be bool or None, not 'yes'"),
        (dict(find_unused_parameters=3), "find_unused_parameters must be bool or None, not 3"),
        (dict(log_processor=3), "log_processor is configured by a dict, not by 3"),
        (dict(env_cfg=dict(mp_config={})), "env_cfg has no option 'mp_config'; did you mean 'mp_cfg'"),
        (dict(env_cfg=dict(dist_cfg=dict(backed="gloo"))), "no option 'backed'; did you mean 'backend'"),
        (dict(log_processor=dict(window=2)), "no option 'window'; did you mean 'window_size'"),
        (
            dict(auto_scale_lr=dict(enable=True)),
            "auto_scale_lr.base_batch_size must be the number of rows that the learning rate is meant for",
        ),
        (
            dict(custom_hooks=[dict(type="EarlyStoppingHook", monitor="knnn")]),
            "does not measure 'knnn'; did you mean 'knn'",
        ),
        ({"default_hooks.checkpoint.save_best": "accuracy"}, "does not measure 'accuracy'; "),
        ({"default_hooks.checkpoint.save_best": ["acc", "aic"]}, "does not measure 'aic'; did you mean 'ari'"),
        ({"default_hooks.checkpoint.save_best": "acc", "val_evaluator": None}, "the config has no val_evaluator"),
        (dict(custom_hooks=[dict(type="LoggerHook", interval="x")]), "'interval' must be int, not 'x'"),
        (dict(visualizer=dict(type="Visualizer", vis_backends=[dict(type="Tensorboard")])), "unknown vis_backend"),
    ],
)
def test_options_that_do_not(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as error:
        check_parts(config("odc", str(tmp_path), **options))
    assert "\n" not in str(error.value)


def test_a_hook_of_ones_own_by_the_name_of_a_refused_one(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OUR_HOOKS._module_dict, "EMAHook", type("EMAHook", (mmengine.hooks.Hook,), {}))
        check_parts(config("odc", str(tmp_path), custom_hooks=[dict(type="EMAHook")]))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, "0", 1.5, True])
def test_seeds_out_of_range(seed: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"seed must be a whole number from 0 to {2**32 - 1}, not {seed!r}")):
        check_seed(seed, "a seed")


def test_a_seed_out_of_range_in_a_config(tmp_path: Path) -> None:
    path = tmp_path / "c.py"
    path.write_text(
        "model = {}\ndata = {}\ntrain_cfg = {}\noptim_wrapper = {}\nrandomness = dict(seed=-1)\n"
        "val_evaluator = dict(type='ClusterMetrics')\n"
    )
    assert prepare_config(path, seed=2**32 - 1).val_evaluator == [dict(type="ClusterMetrics")]
    with pytest.raises(InputError, match=r"randomness\.seed must be a whole number from 0"):
        prepare_config(path)
    with pytest.raises(InputError, match="the seed must be a whole number from 0 to 4294967295, not 4294967296"):
        prepare_config(path, seed=2**32)


@pytest.mark.parametrize("name", ["acc", "nmi", "ari", "knn", "entropy", "empty", "auto"])
def test_the_best_by_any_metric(name: str, tmp_path: Path) -> None:
    train(config("odc", str(tmp_path), **{"default_hooks.checkpoint.save_best": name, "train_cfg.val_interval": 1}))
    assert len(list(tmp_path.glob(f"best_{'acc' if name == 'auto' else name}_epoch_*.pth"))) == 1


def test_a_metric_that_needs_labels(tmp_path: Path) -> None:
    """Images without labels are known before training, but not before the data is read."""
    from PIL import Image

    for i in range(20):
        Image.new("L", (8, 8), i * 10).save(tmp_path / f"{i}.png")
    options = {"data.dataset": dict(type="ImageFolder", root=str(tmp_path), _delete_=True)}
    with pytest.raises(InputError, match="does not measure 'acc' of images without labels; known: empty, entropy"):
        train(config("odc", str(tmp_path / "w"), **options, **{"default_hooks.checkpoint.save_best": "acc"}))


def test_training_stops_early_and_says_the_same_when_it_is_resumed(tmp_path: Path) -> None:
    hook = dict(type="EarlyStoppingHook", monitor="knn", rule="greater", min_delta=2.0, patience=2)
    options = {"custom_hooks": [hook], "train_cfg.max_epochs": 9, "train_cfg.val_interval": 1}
    values = train(config("odc", str(tmp_path / "a"), **options))
    # The first evaluation is the best there is; two more that are no better end it.
    assert values["epochs"] == 3
    assert (tmp_path / "a" / "clusters.csv").exists()
    assert (tmp_path / "a" / "metrics.json").exists()
    cut = {"custom_hooks": [hook, dict(type="Interrupt")]}
    with pytest.raises(SystemExit) as stopped:
        train(config("odc", str(tmp_path / "b"), **{**options, **cut}))
    assert stopped.value.code == 128 + signal.SIGTERM
    again = train(config("odc", str(tmp_path / "b"), **options, resume=True))
    assert again == values


def test_the_rate_is_scaled_by_the_rows_of_a_move(tmp_path: Path) -> None:
    scaled = {"auto_scale_lr": dict(enable=True, base_batch_size=64), "optim_wrapper.accumulative_counts": 2}
    runner = build_runner(config("odc", str(tmp_path), **scaled, **SHORT))
    runner.train()
    group = runner.optim_wrapper.optimizer.param_groups[0]
    assert group["initial_lr"] == pytest.approx(0.05 * 2 * 16 / 64)
    assert torch.isfinite(torch.tensor(group["lr"]))
