# SPICE-Self on features of a frozen network. Vectors have no augmentations: all three views are the same, so images are
# labelled anew after two passes, where the paper makes eight: they would see the same vectors again. At the digits'
# learning rate half of 43 clusters lost all their images, at this one two to four.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(head=dict(type='SpiceSelfHead', num_clusters=10, num_heads=4, repeats=2))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=3e-4, fused=True))
