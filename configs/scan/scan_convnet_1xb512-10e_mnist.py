# SCAN on MNIST, on the features of configs/moco/moco_convnet_1xb64-12e_mnist.py, which do not change.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_convnet_1xb64-12e_mnist/epoch_12.pth',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    frozen=['backbone', 'neck'],
    # The view without augmentation: it is the same at every step.
    head=dict(
        type='SCANHead', num_clusters=10, num_heads=10, batch_size=512, view='extract', normalize='unit'))
train_cfg = dict(max_epochs=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=1e-3, weight_decay=1e-4))
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KMeansMetric')]
