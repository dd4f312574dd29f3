# Photographs in a folder; give the number of clusters with --cfg-options model.head.num_clusters=K.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder224.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=18),
    neck=dict(type='ODCNeck', bn_momentum=0.1),
    head=dict(type='ODCHead', num_clusters=10, batch_size=64, min_cluster=0.16))
train_cfg = dict(max_epochs=100, val_interval=10)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-5),
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
