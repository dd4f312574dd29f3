# TEMI on features of a frozen network, for some thousand images. What differs from the paper is for their number:
# 60 epochs of 5,421 images are 1,320 steps, so the rate is ten times as high and teachers follow faster; with 10
# neighbours instead of 50 those of an image are of its own class where that is small. Four heads, so that it takes
# minutes on one core; the paper has 50.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    head=dict(
        type='TEMIHead', num_clusters=10, num_heads=4, neighbours=10, batch_size=256, teacher_momentum=0.98))
train_cfg = dict(max_epochs=60, val_interval=30, schedule=dict(type='Constant', warmup=0.2))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4, fused=True),
    paramwise_cfg={'head.student.bias': dict(weight_decay=0.0), 'head.student.gain': dict(weight_decay=0.0)})
