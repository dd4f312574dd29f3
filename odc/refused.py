"""What mmengine has and this package does not take, and what to use here instead; the only place that says so."""

_BF16 = "precision='bfloat16' in the config, or --amp, computes in bfloat16, which needs no loss scaling"
_SCHEDULE = "the learning rate follows train_cfg.schedule=dict(type='Cosine'), a function of the progress"
_DATA = "images and loaders are set in data=dict(dataset=..., views=..., num_workers=...), a batch's size by the head"
_LOOP = "one loop trains every method; its options are those of train_cfg: max_epochs, val_interval, ..."
_TEST = "val_evaluator is a list of metrics, for every train_cfg.val_interval epochs, the end, and odc test"
_ONE_OPTIMIZER = "one optimiser trains the model; constructor='ByName' gives its parts options of their own"
_TTA = "an image is seen once by an evaluation, through the view data.views.extract"
_RANKS = "several processes use MMDistributedDataParallel, which is the default (tools/dist_train.sh)"
_DENSE = "gradients here are dense, and a step is one forward and backward: SGD, AdamW, ... do"

# Names of types, in whatever part of a config.
REFUSED_TYPES = {
    **dict.fromkeys(("AmpOptimWrapper", "ApexOptimWrapper"), _BF16),
    **dict.fromkeys(
        ("ColossalAIOptimWrapper", "DeepSpeedOptimWrapper"), f"{_RANKS}; the optimiser's wrapper is OptimWrapper"
    ),
    "OptimWrapperDict": _ONE_OPTIMIZER,
    "EMAHook": "model.ema=0.999 keeps moving averages, of parameters and batch norms, never of memory or labels",
    "SyncBuffersHook": "batch-norm statistics are averaged over the processes at every step, without a hook",
    "NPUProfilerHook": "ProfilerHook profiles a training on a CPU or a GPU",
    "PrepareTTAHook": _TTA,
    **dict.fromkeys(("LBFGS", "SparseAdam"), _DENSE),
    "Muon": f"it takes matrices only, and a network has biases and convolutions: {_ONE_OPTIMIZER}",
    "ZeroRedundancyOptimizer": "the checkpoint of the first process must be complete; name the optimiser itself",
    "Optimizer": "name an optimiser: SGD, AdamW, ...",
    **dict.fromkeys(("EpochBasedTrainLoop", "IterBasedTrainLoop"), _LOOP),
    **dict.fromkeys(("ValLoop", "TestLoop"), _TEST),
    **dict.fromkeys(("DataParallel", "DistributedDataParallel", "MMSeparateDistributedDataParallel"), _RANKS),
    **dict.fromkeys(("MMFullyShardedDataParallel", "MMDeepSpeedEngineWrapper"), _RANKS),
    **dict.fromkeys(("CollosalAIModelWrapper", "ColossalAIModelWrapper"), _RANKS),  # mmengine has it misspelt
}

# Dotted keys of a config; where they are None, or empty, they ask for nothing and are let through.
REFUSED_KEYS = {
    "param_scheduler": _SCHEDULE,
    "train_dataloader": _DATA,
    **dict.fromkeys(("val_dataloader", "test_dataloader"), f"{_DATA}; images to evaluate on are data.eval_dataset"),
    **dict.fromkeys(("train_pipeline", "test_pipeline"), "transforms are data.views, a list for each name"),
    **dict.fromkeys(("val_cfg", "test_cfg", "test_evaluator"), _TEST),
    **dict.fromkeys(("tta_model", "tta_pipeline"), _TTA),
    **dict.fromkeys(("runner_type", "train_cfg.type"), _LOOP),
    "strategy": _RANKS,
    "sync_bn": "batch-norm statistics are averaged over the processes at every step",
    **dict.fromkeys(("train_cfg.by_epoch", "train_cfg.max_iters"), "training is counted in train_cfg.max_epochs"),
    **dict.fromkeys(
        ("train_cfg.val_begin", "train_cfg.dynamic_intervals"), "evaluations are set by train_cfg.val_interval"
    ),
    "randomness.diff_rank_seed": "processes draw by the seed and their place in the batch, each something else",
    "model.data_preprocessor": "images are normalised by the views (ToFloat and Normalize in data.views)",
    "model.init_cfg": "weights come from model.pretrained=FILE",
    **dict.fromkeys(("optim_wrapper.loss_scale", "optim_wrapper.dtype", "optim_wrapper.use_fp16"), _BF16),
}
