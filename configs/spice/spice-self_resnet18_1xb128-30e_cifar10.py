# SPICE-Self's setting for CIFAR-10 (arXiv:2103.09382), on the features of
# configs/moco/moco_resnet18_1xb512-200e_cifar10.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_resnet18_1xb512-200e_cifar10/epoch_200.pth',
    backbone=dict(type='ResNet', depth=18, stem='cifar'),
    # Only the heads are trained, so features are computed once for every labelling.
    frozen=['backbone', 'neck'],
    head=dict(type='SpiceSelfHead', num_clusters=10))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=0.005, fused=True))
