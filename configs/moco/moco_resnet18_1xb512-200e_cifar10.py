# SPICE's MoCo v2 for CIFAR-10 (queue of 12,800 keys, 3x3 stem); --cfg-options data.dataset.download=True fetches it.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

model = dict(
    type='MoCo',
    backbone=dict(type='ResNet', depth=18, stem='cifar'),
    momentum=0.99,
    split_bn=8,
    head=dict(type='MoCoHead', batch_size=512, queue_size=12800, temperature=0.2))
train_cfg = dict(max_epochs=200, val_interval=20, schedule=dict(type='Cosine'))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-4))
val_evaluator = [dict(type='KNNMetric', k=10), dict(type='KMeansMetric')]
