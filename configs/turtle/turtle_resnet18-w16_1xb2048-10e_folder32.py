# TURTLE on a folder of small images, on the features of configs/moco/moco_resnet18-w16_1xb128-40e_folder32.py; an epoch
# is 100 steps.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/folder32.py',
    '../_base_/models/moco_folder32.py',
]

model = dict(
    # The features are 128 numbers: half of their directions, scaled alike, as turtle_features_1xb2048-10e.py does.
    head=dict(type='TurtleHead', num_clusters=10, batch_size=2048, whiten=64, inner_lr=1e-2, gamma=1.5))
train_cfg = dict(max_epochs=10, val_interval=10)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
