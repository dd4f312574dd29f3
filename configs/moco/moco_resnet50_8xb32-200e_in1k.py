# MoCo v2's setting for ImageNet (arXiv:2003.04297), on 8 GPUs: tools/dist_train.sh THIS 8
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder224.py']

_view = [
    dict(type='RandomResizedCrop', size=224, scale=[0.2, 1.0]),
    dict(
        type='RandomApply',
        p=0.8,
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)]),
    dict(type='RandomGrayscale', p=0.2),
    dict(type='RandomApply', p=0.5, transforms=[dict(type='GaussianBlur', kernel_size=23, sigma=[0.1, 2.0])]),
    dict(type='RandomHorizontalFlip'),
    dict(type='ToFloat'),
    dict(type='Normalize', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
]
model = dict(
    type='MoCo',
    backbone=dict(type='ResNet', depth=50),
    momentum=0.999,
    head=dict(type='MoCoHead', batch_size=256, queue_size=65536, temperature=0.2))
data = dict(dataset=dict(root='data/imagenet/train'), views=dict(query=_view, key=_view), num_workers=8)
train_cfg = dict(max_epochs=200, val_interval=200, schedule=dict(type='Cosine'))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4))
val_evaluator = [dict(type='KNNMetric', k=20)]
