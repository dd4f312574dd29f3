# TURTLE on features of frozen networks, one space or several; an epoch is 100 steps.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    head=dict(
        type='TurtleHead',
        num_clusters=10,
        batch_size=2048,
        # Not the paper's raw features at 1e-3, and not its gamma of 10, which makes clusters of one size: a folder's
        # classes seldom are. On features of photographs the generalisation score, which sees no labels, preferred this
        # to either.
        whiten=256,
        inner_lr=1e-2,
        gamma=1.5))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
# The last of these compares settings without labels.
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10), dict(type='GeneralisationScore')]
