# TEMI on MNIST, on the features of configs/moco/moco_convnet_1xb64-12e_mnist.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_convnet_1xb64-12e_mnist/epoch_12.pth',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    frozen=['backbone', 'neck'],
    head=dict(type='TEMIHead', num_clusters=10, teacher_momentum=0.98))
train_cfg = dict(max_epochs=10, schedule=dict(type='Constant', warmup=0.2))
# The paper's rate is 1e-4 for 256 pairs a step, and its trainings have ten times as many steps.
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4, fused=True),
    paramwise_cfg={'head.student.bias': dict(weight_decay=0.0), 'head.student.gain': dict(weight_decay=0.0)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KMeansMetric')]
