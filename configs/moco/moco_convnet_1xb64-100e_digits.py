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
    dict(type='ElasticTransform', alpha=36.0, sigma=3.5),
    dict(type='ToFloat'),
    dict(type='GaussianNoise', sigma=0.1),
    dict(type='Normalize', mean=[0.31], std=[0.36]),
]
model = dict(
    type='MoCo',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    # 1,797 images make few steps: small batches and both directions of the loss learn more from each image; a short
    # queue, since its keys age quickly, and a key encoder that follows quickly.
    momentum=0.99,
    symmetric=True,
    head=dict(type='MoCoHead', batch_size=64, queue_size=256, temperature=0.5, out_channels=64))
data = dict(views=dict(query=_view, key=_view))
train_cfg = dict(max_epochs=100, val_interval=50, schedule=dict(type='Cosine', warmup=0.3))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
val_evaluator = [dict(type='KNNMetric', k=10), dict(type='KMeansMetric', num_clusters=10)]
