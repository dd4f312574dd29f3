# A narrow ResNet-18 (16 channels in the first stage): 5,000 images on a laptop's CPU. An epoch sees every image in four
# rotations.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder32.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=18, stem='cifar', width=16),
    head=dict(type='DeeperClusterHead', num_clusters=10, num_super=2, batch_size=128, pca_dim=64))
train_cfg = dict(max_epochs=20, val_interval=5)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-5))
