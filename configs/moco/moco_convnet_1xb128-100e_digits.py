# MoCo v2 on scikit-learn's digits.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

_view = [
    dict(
        type='RandomAffine',
        degrees=15,
        translate=[0.15, 0.15],
        scale=[0.85, 1.15],
        shear=[-11.5, 11.5, -11.5, 11.5],
        interpolation='bilinear'),
    dict(type='ElasticTransform', alpha=18.0, sigma=3.0),
    dict(type='ToFloat'),
    dict(type='GaussianNoise', sigma=0.1),
    dict(type='Normalize', mean=[0.31], std=[0.36]),
]
model = dict(
    type='MoCo',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    # Small data: a queue of some batches that changes quickly, so a key encoder that follows quickly.
    momentum=0.99,
    head=dict(type='MoCoHead', batch_size=128, queue_size=1024, temperature=0.2, out_channels=64))
data = dict(views=dict(query=_view, key=_view))
train_cfg = dict(max_epochs=100, val_interval=25, schedule=dict(type='Cosine', warmup=0.1))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
val_evaluator = [dict(type='KNNMetric', k=10), dict(type='KMeansMetric', num_clusters=10)]
