# SPICE-Semi on a folder of small images, from the reliable labels of spice-self_resnet18-w16_1xb128-30e_folder32.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder32.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_resnet18-w16_1xb128-40e_folder32/epoch_40.pth',
    backbone=dict(type='ResNet', depth=18, stem='cifar', width=16),
    # 500 steps in all, what a CPU does in ten minutes: an average over the last 1,000 would hold where they began.
    ema=0.99,
    head=dict(type='SpiceSemiHead', num_clusters=10, labelled_size=32, batch_size=160, steps=50))
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
    max_epochs=10,
    val_interval=5,
    schedule=dict(type='CosineArc', arc=7 / 16),
    label_file='work_dirs/spice-self_resnet18-w16_1xb128-30e_folder32/reliable.npz')
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0))
