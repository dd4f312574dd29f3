_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[32, 64, 128]),
    neck=dict(type='ODCNeck', hidden_channels=128, out_channels=64),
    head=dict(type='ODCHead', num_clusters=10, batch_size=256, min_cluster=20))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-5),
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
