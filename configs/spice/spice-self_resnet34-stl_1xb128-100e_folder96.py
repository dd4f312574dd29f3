# SPICE-Self on a folder of 96-pixel images, on the features of configs/moco/moco_resnet34-stl_1xb256-200e_folder96.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder96.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_resnet34-stl_1xb256-200e_folder96/epoch_200.pth',
    backbone=dict(type='ResNet', depth=34, stem='stl'),
    # Only the heads are trained, so features are computed once for every labelling.
    frozen=['backbone', 'neck'],
    head=dict(type='SpiceSelfHead', num_clusters=10))
train_cfg = dict(max_epochs=100, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=0.005, fused=True))
