# SPICE-Semi on MNIST, from the reliable labels of spice-self_convnet_1xb128-1e_mnist.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_convnet_1xb64-12e_mnist/epoch_12.pth',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    ema=0.995,
    head=dict(type='SpiceSemiHead', num_clusters=10, labelled_size=32, batch_size=224, steps=200))
train_cfg = dict(
    max_epochs=10,
    val_interval=5,
    schedule=dict(type='CosineArc', arc=7 / 16),
    label_file='work_dirs/spice-self_convnet_1xb128-1e_mnist/reliable.npz')
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0))
