# DeepCluster with ResNet-50 on ImageNet as the ODC paper compares with it, on 8 GPUs: tools/dist_train.sh THIS 8
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder224.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=50),
    head=dict(type='DeepClusterHead', num_clusters=10000, batch_size=512))
data = dict(dataset=dict(root='data/imagenet/train'), num_workers=8)
train_cfg = dict(max_epochs=200, val_interval=200)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-5),
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
