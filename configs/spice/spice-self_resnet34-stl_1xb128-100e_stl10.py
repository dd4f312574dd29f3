# SPICE-Self's setting for STL-10 (arXiv:2103.09382), on the features of
# configs/moco/moco_resnet34-stl_1xb256-1000e_stl10.py.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/stl10.py']

model = dict(
    type='ClusterModel',
    pretrained='work_dirs/moco_resnet34-stl_1xb256-1000e_stl10/epoch_1000.pth',
    backbone=dict(type='ResNet', depth=34, stem='stl'),
    # Only the heads are trained, so features are computed once for every labelling.
    frozen=['backbone', 'neck'],
    head=dict(type='SpiceSelfHead', num_clusters=10))
train_cfg = dict(max_epochs=100, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=0.005, fused=True))
