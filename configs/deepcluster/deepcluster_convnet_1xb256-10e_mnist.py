# DC on MNIST's 60,000 training images.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    head=dict(type='DeepClusterHead', num_clusters=10, batch_size=256, pca_dim=16, kmeans_redo=5))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4),
    # The classifier is new every epoch: the paper trains it without momentum.
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10, max_samples=10_000)]
