# SCAN on scikit-learn's digits: the whole network trains, as in the paper, on strongly augmented images. It starts from
# configs/moco/moco_convnet_1xb64-300e_digits.py, whose features find the neighbours.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_convnet_1xb64-300e_digits/epoch_300.pth',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    head=dict(type='SCANHead', num_clusters=10, num_heads=5, batch_size=128, view='strong'))
train_cfg = dict(max_epochs=30, val_interval=10)
# Ten times the paper's rate: 14 steps an epoch, where CIFAR-10 has 390.
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3, weight_decay=1e-4))
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KMeansMetric')]
