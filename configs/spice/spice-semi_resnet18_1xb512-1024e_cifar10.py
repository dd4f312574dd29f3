# SPICE-Semi's setting for CIFAR-10 (arXiv:2103.09382): 2**20 steps of FixMatch, from the reliable labels of
# spice-self_resnet18_1xb128-30e_cifar10.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_resnet18_1xb512-200e_cifar10/epoch_200.pth',
    backbone=dict(type='ResNet', depth=18, stem='cifar'),
    ema=0.999,
    head=dict(type='SpiceSemiHead', num_clusters=10, steps=1024))
data = dict(
    views=dict(
        # RandAugment and a hole of up to half the width, then the weak view.
        strong=[
            dict(type='Resize', size=32),
            dict(type='CenterCrop', size=32),
            dict(type='RandAugment', num_ops=3),
            dict(type='Cutout', size=[1, 16]),
            dict(type='RandomCrop', size=32, padding=4, padding_mode='reflect'),
            dict(type='RandomHorizontalFlip'),
            dict(type='ToFloat'),
            dict(type='Normalize', mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26]),
        ]))
train_cfg = dict(
    max_epochs=1024,
    val_interval=16,
    schedule=dict(type='CosineArc', arc=7 / 16),
    label_file='work_dirs/spice-self_resnet18_1xb128-30e_cifar10/reliable.npz')
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0))
