default_hooks = dict(
    # ProgressHook logs what these would.
    timer=None,
    logger=None,
    param_scheduler=None,
    sampler_seed=None,
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
)
custom_hooks = [dict(type='ProgressHook'), dict(type='PreflightHook')]
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10)]
randomness = dict(seed=0)
