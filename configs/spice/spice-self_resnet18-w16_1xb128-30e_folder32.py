# SPICE-Self on a folder of small images, on the features of configs/moco/moco_resnet18-w16_1xb128-40e_folder32.py.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/folder32.py',
    '../_base_/models/moco_folder32.py',
]

model = dict(
    head=dict(type='SpiceSelfHead', num_clusters=10))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=0.005, fused=True))
