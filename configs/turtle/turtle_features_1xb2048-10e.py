# TURTLE on features of frozen networks, one space or several; an epoch is 100 steps.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    head=dict(
        type='TurtleHead',
        num_clusters=10,
        batch_size=2048,
        # Not the paper's raw features: these weigh a direction by its variance, and take five times as long. Of columns
        # of variance 1 each weight moves the scores less, so classifiers learn faster.
        whiten=256,
        inner_lr=1e-2,
        # Not the paper's 10, which makes clusters of one size: a folder's classes seldom are.
        gamma=1.5))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
# The last of these compares settings without labels.
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10), dict(type='GeneralisationScore')]
