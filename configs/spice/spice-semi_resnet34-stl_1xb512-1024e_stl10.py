# SPICE-Semi's setting for STL-10 (arXiv:2103.09382): 2**20 steps of FixMatch, from the reliable labels (a local
# consistency above .90) of spice-self_resnet34-stl_1xb128-100e_stl10.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/stl10.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_resnet34-stl_1xb256-1000e_stl10/epoch_1000.pth',
    backbone=dict(type='ResNet', depth=34, stem='stl'),
    ema=0.999,
    head=dict(type='SpiceSemiHead', num_clusters=10, steps=1024))
data = dict(
    views=dict(
        # RandAugment and a hole of up to half the width, then the weak view.
        strong=[
            dict(type='Resize', size=96),
            dict(type='CenterCrop', size=96),
            dict(type='RandAugment', num_ops=3),
            dict(type='Cutout', size=[1, 48]),
            dict(type='RandomCrop', size=96, padding=12, padding_mode='reflect'),
            dict(type='RandomHorizontalFlip'),
            dict(type='ToFloat'),
            dict(type='Normalize', mean=[0.45, 0.44, 0.41], std=[0.26, 0.26, 0.27]),
        ]))
train_cfg = dict(
    max_epochs=1024,
    val_interval=16,
    schedule=dict(type='CosineArc', arc=7 / 16),
    label_file='work_dirs/spice-self_resnet34-stl_1xb128-100e_stl10/reliable.npz')
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0))
