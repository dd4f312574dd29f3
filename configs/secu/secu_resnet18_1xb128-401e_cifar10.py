# SeCu on CIFAR-10's training images, ResNet-18, with the paper's settings; --cfg-options data.dataset.download=True
# fetches the images.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

_colours = [
    dict(type='RandomResizedCrop', size=32, scale=[0.3, 1.0]),
    dict(
        type='RandomApply',
        p=0.8,
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)]),
    dict(type='RandomGrayscale', p=0.2),
]
_blur = [dict(type='GaussianBlur', kernel_size=3, sigma=[0.1, 2.0])]
_finish = [
    dict(type='RandomHorizontalFlip'),
    dict(type='ToFloat'),
    dict(type='Normalize', mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26]),
]
model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=18, stem='cifar'),
    head=dict(type='SeCuHead', num_clusters=10, batch_size=128))
data = dict(
    views=dict(
        query=_colours + _blur + _finish,
        key=_colours + [
            dict(type='RandomApply', p=0.1, transforms=_blur),
            dict(type='RandomSolarize', threshold=128, p=0.2),
        ] + _finish))
# The network rests for an epoch and takes ten to its rate, the centres' is what it is from the first step on.
train_cfg = dict(max_epochs=401, val_interval=50, schedule=dict(type='Cosine', warmup=10 / 401, delay=1 / 401))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg={'head.centers': dict(lr=1.2, constant_lr=True)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10)]
