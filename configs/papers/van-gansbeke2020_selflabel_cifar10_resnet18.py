# SCAN's self-labelling on CIFAR-10, ResNet-18 (Van Gansbeke et al., ECCV 2020, arXiv:2005.12320), from the last
# checkpoint of van-gansbeke2020_scan_cifar10_resnet18.py.
# Published, on the test images, ten seeds: ACC 87.6 ± 0.4 (the best of ten: ACC 88.3, NMI 79.7, ARI 77.2). Not
# reproduced here.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

load_from = 'work_dirs/van-gansbeke2020_scan_cifar10_resnet18/epoch_50.pth'
model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=18, stem='cifar'),
    head=dict(type='SelfLabelHead', num_clusters=10, num_heads=1, batch_size=1000))
train_cfg = dict(max_epochs=200, val_interval=20)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4, weight_decay=1e-4))
