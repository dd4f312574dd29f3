# TEMI on scikit-learn's digits, on the features of configs/moco/moco_convnet_1xb64-300e_digits.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_convnet_1xb64-300e_digits/epoch_300.pth',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    frozen=['backbone', 'neck'],
    head=dict(type='TEMIHead', num_clusters=10, batch_size=64, teacher_momentum=0.98))
train_cfg = dict(max_epochs=30, val_interval=10, schedule=dict(type='Constant', warmup=0.2))
# The paper's rate is 1e-4 for 256 pairs a step, and its trainings have many times as many steps.
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4, fused=True),
    paramwise_cfg={'head.student.bias': dict(weight_decay=0.0), 'head.student.gain': dict(weight_decay=0.0)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KMeansMetric')]
