# DeeperCluster on scikit-learn's digits: 10 clusters in 2 super-clusters, clustered anew every third epoch. Rotation is
# a poor teacher here: 0, 1 and 8 look the same upside down, and a 6 turned by 180 degrees is a 9, so that the net is
# asked to tell apart what only the writer knew. An epoch has four times the steps of DeepCluster's.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    head=dict(type='DeeperClusterHead', num_clusters=10, num_super=2, batch_size=64, pca_dim=32))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-5))
