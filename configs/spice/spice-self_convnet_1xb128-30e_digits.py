# SPICE-Self on scikit-learn's digits, on the features of configs/moco/moco_convnet_1xb64-300e_digits.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_convnet_1xb64-300e_digits/epoch_300.pth',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    # Only the heads are trained, so features are computed once for every labelling.
    frozen=['backbone', 'neck'],
    head=dict(type='SpiceSelfHead', num_clusters=10))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=0.005, fused=True))
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KMeansMetric')]
