# ProPos on CIFAR-10's training images, ResNet-18; --cfg-options data.dataset.download=True fetches them.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

_view = [
    dict(type='RandomResizedCrop', size=32, scale=[0.08, 1.0]),
    dict(type='RandomHorizontalFlip'),
    dict(
        type='RandomApply',
        p=0.8,
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)]),
    dict(type='RandomGrayscale', p=0.2),
    dict(type='ToFloat'),
    dict(type='Normalize', mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26]),
]
model = dict(
    type='BYOL',
    backbone=dict(type='ResNet', depth=18, stem='cifar'),
    momentum=0.996,
    head=dict(type='ProPosHead', num_clusters=10, batch_size=512, warmup=50))
data = dict(views=dict(query=_view, key=_view))
train_cfg = dict(max_epochs=1000, val_interval=50, schedule=dict(type='Cosine', warmup=0.05))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg={'head.predictor': dict(lr=1.0)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10)]
