# TEMI on a folder of small images, on the features of configs/moco/moco_resnet18-w16_1xb128-40e_folder32.py, with the
# settings of temi_features_1xb256-60e.py.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/folder32.py',
    '../_base_/models/moco_folder32.py',
]

model = dict(
    head=dict(
        type='TEMIHead', num_clusters=10, num_heads=4, neighbours=10, batch_size=256, teacher_momentum=0.98))
train_cfg = dict(max_epochs=60, val_interval=30, schedule=dict(type='Constant', warmup=0.2))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4, fused=True),
    paramwise_cfg={'head.student.bias': dict(weight_decay=0.0), 'head.student.gain': dict(weight_decay=0.0)})
