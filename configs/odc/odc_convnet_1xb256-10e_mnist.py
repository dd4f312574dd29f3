# ODC on MNIST's 60,000 training images.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    # 2,350 steps: the paper's momentum of 0.001 would leave the batch norm's statistics near where they started.
    neck=dict(type='ODCNeck', bn_momentum=0.1),
    head=dict(type='ODCHead', num_clusters=10, batch_size=256, min_cluster=0.16, kmeans_redo=20))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-5),
    # The paper trains the classifier without momentum.
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10, max_samples=10_000)]
