"""What mmengine has and this package does not take, and what to use here instead; the only place that says so."""

_BF16 = "precision='bfloat16' in the config, or --amp, computes in bfloat16, which needs no loss scaling"
_SCHEDULE = "the learning rate follows train_cfg.schedule=dict(type='Cosine'), a function of the progress"
_DATA = "images and loaders are set in data=dict(dataset=..., views=..., num_workers=...), a batch's size by the head"
_LOOP = "one loop trains every method; its options are those of train_cfg: max_epochs, val_interval, ..."
_TEST = "val_evaluator is a list of metrics, for every train_cfg.val_interval epochs, the end, and odc test"
_ONE_OPTIMIZER = "one optimiser trains the model; constructor='ByName' gives its parts options of their own"
_TTA = "an image is seen once by an evaluation, through the view data.views.extract"
_RANKS = "several processes go by MMDistributedDataParallel, which is the default (tools/dist_train.sh)"
_DENSE = "gradients here are dense, and a step is one forward and backward: SGD, AdamW, ... do"

# Names of types, in whatever part of a config.
REFUSED_TYPES = {
    "AmpOptimWrapper": _BF16,
    "ApexOptimWrapper": _BF16,
    "ColossalAIOptimWrapper": f"{_RANKS}; the optimiser's wrapper is OptimWrapper",
    "DeepSpeedOptimWrapper": f"{_RANKS}; the optimiser's wrapper is OptimWrapper",
    "OptimWrapperDict": _ONE_OPTIMIZER,
    "EMAHook": "model.ema=0.999 keeps moving averages, of parameters and batch norms, never of memory or labels",
    "SyncBuffersHook": "batch-norm statistics are averaged over the processes at every step, without a hook",
    "NPUProfilerHook": "ProfilerHook profiles a training on a CPU or a GPU",
    "PrepareTTAHook": _TTA,
    "LBFGS": _DENSE,
    "SparseAdam": _DENSE,
    "Muon": f"it takes matrices only, and a network has biases and convolutions: {_ONE_OPTIMIZER}",
    "ZeroRedundancyOptimizer": "a checkpoint of the first process is to be complete; name the optimiser itself",
    "Optimizer": "name an optimiser: SGD, AdamW, ...",
    "EpochBasedTrainLoop": _LOOP,
    "IterBasedTrainLoop": _LOOP,
    "ValLoop": _TEST,
    "TestLoop": _TEST,
    "DataParallel": _RANKS,
    "DistributedDataParallel": _RANKS,
    "MMSeparateDistributedDataParallel": _RANKS,
    "MMFullyShardedDataParallel": _RANKS,
    "MMDeepSpeedEngineWrapper": _RANKS,
    "CollosalAIModelWrapper": _RANKS,
    "ColossalAIModelWrapper": _RANKS,
}

# Dotted keys of a config; where they are None, or empty, they ask for nothing and are let through.
REFUSED_KEYS = {
    "param_scheduler": _SCHEDULE,
    "train_dataloader": _DATA,
    "val_dataloader": f"{_DATA}; images to evaluate on are data.eval_dataset",
    "test_dataloader": f"{_DATA}; images to evaluate on are data.eval_dataset",
    "train_pipeline": "transforms are data.views, a list for each name",
    "test_pipeline": "transforms are data.views, a list for each name",
    "val_cfg": _TEST,
    "test_cfg": _TEST,
    "test_evaluator": _TEST,
    "tta_model": _TTA,
    "tta_pipeline": _TTA,
    "runner_type": _LOOP,
    "strategy": _RANKS,
    "sync_bn": "batch-norm statistics are averaged over the processes at every step",
    "train_cfg.type": _LOOP,
    "train_cfg.by_epoch": "training is counted in train_cfg.max_epochs",
    "train_cfg.max_iters": "training is counted in train_cfg.max_epochs",
    "train_cfg.val_begin": "evaluations are set by train_cfg.val_interval",
    "train_cfg.dynamic_intervals": "evaluations are set by train_cfg.val_interval",
    "randomness.diff_rank_seed": "processes draw by the seed and their place in the batch, each something else",
    "model.data_preprocessor": "images are normalised by the views (ToFloat and Normalize in data.views)",
    "model.init_cfg": "weights come from model.pretrained=FILE",
    "optim_wrapper.loss_scale": _BF16,
    "optim_wrapper.dtype": _BF16,
    "optim_wrapper.use_fp16": _BF16,
}
