# Self-labelling on scikit-learn's digits: the whole network trains, from the last checkpoint of
# scan_convnet_1xb256-30e_digits.py, as in the paper for ImageNet.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

load_from = 'work_dirs/scan_convnet_1xb256-30e_digits/epoch_30.pth'
model = dict(
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    # A third of the images a step, where the paper has 1,000 of 50,000; ten heads, as SCAN's checkpoint has.
    head=dict(type='SelfLabelHead', num_clusters=10, num_heads=10, batch_size=600, normalize='unit'))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4, weight_decay=1e-4))
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KMeansMetric')]
