# SCAN on a folder of small images, on the features of configs/moco/moco_resnet18-w16_1xb128-40e_folder32.py.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/folder32.py',
    '../_base_/models/moco_folder32.py',
]

# The settings of scan_features_1xb512-30e.py: the features do not change either. The view is without augmentation.
model = dict(
    head=dict(
        type='SCANHead',
        num_clusters=10,
        num_heads=10,
        neighbours=10,
        batch_size=512,
        entropy_weight=1.3,
        answer='consensus',
        normalize='unit',
        view='extract'))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=1e-3, weight_decay=1e-4))
