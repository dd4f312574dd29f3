# ProPos on a folder of small images with a narrow ResNet-18, for a computer without a GPU; with the views and as many
# epochs as MoCo's.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder32.py']

model = dict(
    type='BYOL',
    backbone=dict(type='ResNet', depth=18, stem='cifar', width=16),
    momentum=0.99,
    head=dict(
        type='ProPosHead', num_clusters=10, batch_size=128, hidden_channels=512, out_channels=128, warmup=10,
        kmeans_redo=10))
train_cfg = dict(max_epochs=40, val_interval=10, schedule=dict(type='Cosine', warmup=0.1))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg={'head.predictor': dict(lr=0.5)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10), dict(type='KMeansMetric')]
