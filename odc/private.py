"""Private names of mmengine that this package goes by, and why; no part of it uses another one.

They may change with any version: ``setup.py`` allows none beyond the next minor one, and ``tests/test_private.py`` says
which is gone. They are used in ``runner.py``, ``logs.py`` and ``engine/checkpointing.py`` alone.
"""

PRIVATE = {
    "mmengine.runner.Runner._timestamp": "runners of one second would share logger, message hub and folder of logs",
    "mmengine.runner.Runner._train_dataloader": "the data is read once there is a log for what it has to say",
    "mmengine.runner.Runner._val_dataloader": "the same",
    "mmengine.runner.Runner._resume": "the option of the constructor",
    "mmengine.runner.Runner._load_from": "the option of the constructor",
    "mmengine.runner.Runner._randomness_cfg": "a resumed run keeps its seed",
    "mmengine.runner.Runner._maybe_compile": "it compiles train_step, which no loop here calls",
    "mmengine.runner.EpochBasedTrainLoop._epoch": "the position to resume at",
    "mmengine.runner.EpochBasedTrainLoop._iter": "the position to resume at",
    "mmengine.Config._format_python_code": "0.4 s of formatting at every checkpoint",
    "mmengine.logging.MessageHub._log_scalars": "the histories of logged values are bounded",
    "mmengine.visualization.LocalVisBackend._dump": "its errors do not name the file",
    "mmengine.hooks.CheckpointHook._default_greater_keys": "it guesses by the name whether more is better",
    "mmengine.hooks.CheckpointHook._default_less_keys": "the same",
    "mmengine.hooks.CheckpointHook._init_rule": "a name that it cannot guess by is wrong input",
    "mmengine.hooks.CheckpointHook._save_best_checkpoint": "it deletes the best file before the better one is written",
    "mmengine.hooks.CheckpointHook._save_checkpoint_with_step": "it deletes the old file before the new one is written",
    "mmengine.hooks.EarlyStoppingHook._default_greater_keys": "as for CheckpointHook",
    "mmengine.hooks.EarlyStoppingHook._default_less_keys": "as for CheckpointHook",
    "mmengine.hooks.EarlyStoppingHook._check_stop_condition": "a resumed run counts anew, from all values so far",
}
