# DeeperCluster on MNIST's 60,000 training images; what turning a digit means, see the config for the digits. An epoch
# has four times the steps of DeepCluster's.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    head=dict(type='DeeperClusterHead', num_clusters=10, num_super=2, batch_size=256, pca_dim=32))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-5))
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10, max_samples=10_000)]
