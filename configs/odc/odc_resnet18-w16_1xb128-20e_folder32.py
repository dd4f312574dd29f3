# A narrow ResNet-18 (16 channels in the first stage): 5,000 images on a laptop's CPU in minutes.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder32.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=18, stem='cifar', width=16),
    # Some 40 steps an epoch: the paper's momentum of 0.001 would leave the statistics where they started.
    neck=dict(type='ODCNeck', bn_momentum=0.1),
    head=dict(type='ODCHead', num_clusters=10, batch_size=128, min_cluster=0.16))
train_cfg = dict(max_epochs=20, val_interval=5)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-5),
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
