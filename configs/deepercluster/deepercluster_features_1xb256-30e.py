# DeeperCluster on features of a frozen network. They cannot be rotated: clusters alone teach the small network on them.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    frozen=['backbone'],
    neck=dict(type='ODCNeck', bn_momentum=0.1),
    head=dict(
        type='DeeperClusterHead', num_clusters=10, num_super=2, batch_size=256, pca_dim=64, rotation=False))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-5))
