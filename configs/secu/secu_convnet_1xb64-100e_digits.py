# SeCu on scikit-learn's digits, from random weights, with the convnet and the views of MoCo's.
_base_ = '../moco/moco_convnet_1xb64-100e_digits.py'

model = dict(
    _delete_=True,
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    head=dict(type='SeCuHead', num_clusters=10, batch_size=64, out_channels=64))
# The paper's network rests for its first epoch, 390 steps, until centres and dual variables have spread the images over
# the clusters; here an epoch is 29 steps. Without it the network learns first that all images are one cluster.
train_cfg = dict(max_epochs=100, val_interval=100, schedule=dict(type='Cosine', warmup=0.1, delay=0.15))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg={'head.centers': dict(lr=0.05, constant_lr=True)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10), dict(type='KMeansMetric', num_clusters=10)]
