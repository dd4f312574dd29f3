# DC on features of a frozen network: what trains, and is clustered anew every epoch, is a small network on them.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    frozen=['backbone'],
    neck=dict(type='ODCNeck', bn_momentum=0.1),
    head=dict(type='DeepClusterHead', num_clusters=10, batch_size=256, pca_dim=64, kmeans_redo=5))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4),
    # The classifier is new every epoch: the paper trains it without momentum.
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
