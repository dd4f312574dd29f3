# SPICE-Self on features of a frozen network. Vectors have no augmentations: all three views are the same, so images are
# labelled anew before every pass, where the paper makes eight: they would see the same vectors again.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(head=dict(type='SpiceSelfHead', num_clusters=10, repeats=1))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=0.005))
