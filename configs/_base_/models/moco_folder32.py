# The backbone of configs/moco/moco_resnet18-w16_1xb128-40e_folder32.py, which does not train any more: only heads
# do, so features are computed once.
model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_resnet18-w16_1xb128-40e_folder32/epoch_40.pth',
    backbone=dict(type='ResNet', depth=18, stem='cifar', width=16),
    frozen=['backbone', 'neck'])
