# SeCu on MNIST's 60,000 training images, from random weights, with the convnet and the views of MoCo's.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    head=dict(type='SeCuHead', num_clusters=10, batch_size=64, out_channels=64))
train_cfg = dict(max_epochs=10, val_interval=10, schedule=dict(type='Cosine', warmup=0.1, delay=0.05))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg={'head.centers': dict(lr=0.05, constant_lr=True)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10, max_samples=10_000)]
