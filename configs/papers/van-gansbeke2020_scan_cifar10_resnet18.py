# SCAN on CIFAR-10, ResNet-18, before self-labelling (Van Gansbeke et al., ECCV 2020, arXiv:2005.12320).
# Published, on the test images, ten seeds: ACC 81.8 ± 0.3. Not reproduced here. The paper starts from SimCLR and takes
# neighbours from its projections; here they are those of MoCo's features. The published code chooses the epoch by the
# test images, here the training images choose the classifier.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/cifar10.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_resnet18_1xb512-200e_cifar10/epoch_200.pth',
    backbone=dict(type='ResNet', depth=18, stem='cifar'),
    head=dict(type='SCANHead', num_clusters=10, num_heads=1, neighbours=20, batch_size=128, view='strong'))
train_cfg = dict(max_epochs=50, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4, weight_decay=1e-4))
