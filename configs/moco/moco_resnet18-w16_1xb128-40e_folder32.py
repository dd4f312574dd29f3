# MoCo v2 on a folder of small images with a narrow ResNet-18, for a computer without a GPU. The queue needs more than
# 4,096 images.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder32.py']

model = dict(
    type='MoCo',
    backbone=dict(type='ResNet', depth=18, stem='cifar', width=16),
    momentum=0.99,
    split_bn=2,
    head=dict(type='MoCoHead', batch_size=128, queue_size=4096, temperature=0.2))
train_cfg = dict(max_epochs=40, val_interval=10, schedule=dict(type='Cosine'))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-4))
val_evaluator = [dict(type='KNNMetric', k=10), dict(type='KMeansMetric')]
