# The paper's setting for ImageNet (arXiv:2006.10645), on 8 GPUs: tools/dist_train.sh THIS 8
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder224.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=50),
    neck=dict(type='ODCNeck'),
    head=dict(type='ODCHead', num_clusters=10000, batch_size=512))
data = dict(dataset=dict(root='data/imagenet/train'), num_workers=8)
train_cfg = dict(max_epochs=440, val_interval=440, schedule=dict(type='Step', milestones=[400 / 440], gamma=0.4))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-5),
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
