# TEMI on features of a frozen network.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(head=dict(type='TEMIHead', num_clusters=10, neighbours=10, teacher_momentum=0.98))
train_cfg = dict(max_epochs=100, val_interval=50, schedule=dict(type='Constant', warmup=0.2))
# The paper's rate is 1e-4 for 256 pairs a step, and its trainings have many times as many steps as one on some thousand
# images has; teachers follow faster, too.
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4, fused=True),
    paramwise_cfg={'head.student.bias': dict(weight_decay=0.0), 'head.student.gain': dict(weight_decay=0.0)})
