# TURTLE on MNIST, on the features of configs/moco/moco_convnet_1xb64-12e_mnist.py; an epoch is 100 steps.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_convnet_1xb64-12e_mnist/epoch_12.pth',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    frozen=['backbone', 'neck'],
    # 64 small numbers an image: at the paper's 1e-3 ten steps teach a classifier next to nothing, as the log then says.
    head=dict(type='TurtleHead', num_clusters=10, inner_lr=0.1))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
