"""What a training must have in common with the one that it resumes: the images, and most settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import Hook

from odc.engine.loops import ClusterTrainLoop
from odc.errors import InputError

# Everything in these decides what is computed, but for what follows.
_SETTINGS = ("model", "data", "train_cfg", "optim_wrapper.optimizer.type", "optim_wrapper.accumulative_counts")
_FREE = (
    "data.num_workers",
    "data.extract_batch_size",
    "train_cfg.max_epochs",
    "train_cfg.val_interval",
    "train_cfg.schedule",
)
_ONLY_AT_THE_START = ("model.pretrained", "train_cfg.label_file")
_CHECKS = ("strict", "verify")  # of a data set: they refuse images, or leave them out, which the fingerprint tells


class SameRunHook(Hook):
    """Put what a training is of into its checkpoints, and refuse to resume one that was of something else.

    ``meta.images`` has number and fingerprint of the images that are clustered, and of those that are evaluated where
    they are others; ``meta.settings`` has the settings by their dotted names.
    """

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add both to ``checkpoint["meta"]``."""
        checkpoint["meta"] |= {"images": _images(runner), "settings": _settings(runner.cfg)}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Compare, before anything of the checkpoint is taken.

        Raises:
            InputError: other images, or other settings.
        """
        meta = checkpoint.get("meta")
        if not runner.resumes or not isinstance(meta, Mapping):
            return
        images, settings = meta.get("images"), meta.get("settings")
        if isinstance(images, Mapping):
            _check_images(images, _images(runner))
        if isinstance(settings, Mapping):
            _check_settings(runner, settings, _settings(runner.cfg))


def _images(runner: Any) -> dict[str, dict[str, Any]]:
    loop = runner.train_loop
    if not isinstance(loop, ClusterTrainLoop):
        return {}
    sources = {"dataset": loop.data.train, "eval_dataset": loop.data.eval}
    if loop.data.eval is loop.data.train:
        del sources["eval_dataset"]
    return {
        name: {"number": len(source.dataset), "fingerprint": source.dataset.fingerprint}
        for name, source in sources.items()
    }


def _check_images(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in ("dataset", "eval_dataset"):
        if before.get(name) != now.get(name):
            remedy = (
                "put those back, or start anew in another --work-dir"
                if name == "dataset"
                else "put those back; odc test evaluates a checkpoint on other images"
            )
            raise InputError(
                f"data.{name} has {_told(now.get(name))}, but the training to resume had {_told(before.get(name))}: "
                f"{remedy}"
            )


def _told(images: Any) -> str:
    if not isinstance(images, Mapping):
        return "no images of its own"
    number = images.get("number")
    return f"{number:,} images with fingerprint {images.get('fingerprint')}" if isinstance(number, int) else "others"


def _settings(cfg: Any) -> dict[str, str]:
    """Return the settings that a resumed training must share, and those read at its start, as JSON by dotted name."""
    return {
        name: text
        for name, text in _flat(cfg.to_dict(), "")
        if text != "null" and _below(name, _SETTINGS) and not _below(name, _FREE) and not _says_where(name, text)
    }


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            if not str(key).startswith("_"):
                yield from _flat(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value, sort_keys=True, skipkeys=True, default=lambda x: getattr(x, "__name__", "?"))


def _below(name: str, settings: tuple[str, ...]) -> bool:
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)


def _says_where(name: str, text: str) -> bool:
    """Return whether a setting says where images are, or how to check them: the fingerprint tells which they are."""
    if not _below(name, ("data.dataset", "data.eval_dataset")):
        return False
    return text.startswith('"') or name.rpartition(".")[2] in _CHECKS


def _check_settings(runner: Any, before: Mapping[str, Any], now: Mapping[str, str]) -> None:
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    late = [name for name in different if name in _ONLY_AT_THE_START]
    wrong = [name for name in different if name not in late]
    if wrong:
        told = "; ".join(f"{name} is {_short(now.get(name))} and was {_short(before.get(name))}" for name in wrong[:3])
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"the training to resume had other settings: {told}{more}: put them back, or start anew in another "
            "--work-dir (model.pretrained=CHECKPOINT takes the backbone along)"
        )
    if late:
        runner.logger.warning(f"{', '.join(late)}: read when a training starts, not when it is resumed")


def _short(text: Any) -> str:
    if text is None:
        return "not set"
    return str(text) if len(str(text)) <= 60 else f"{str(text)[:57]}..."
