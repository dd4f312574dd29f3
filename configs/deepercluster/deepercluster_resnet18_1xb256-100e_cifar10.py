# CIFAR-10 at its own size; --cfg-options data.dataset.download=True fetches it. Far more clusters than classes, as the
# method means them; for 10 clusters set model.head.num_clusters=10 model.head.num_super=2.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=18, stem='cifar'),
    head=dict(type='DeeperClusterHead', num_clusters=1000, num_super=4, batch_size=256))
train_cfg = dict(max_epochs=100, val_interval=25, schedule=dict(type='Cosine'))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-5))
