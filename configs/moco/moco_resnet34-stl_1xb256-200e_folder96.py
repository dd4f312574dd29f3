# MoCo v2 with SPICE's ResNet-34 for STL-10 (3x3 stem, arXiv:2103.09382) on any folder of 96-pixel images. The queue
# needs more than 32,768 images: of fewer, set model.head.queue_size to a multiple of 256 below their number.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder96.py']

model = dict(
    type='MoCo',
    backbone=dict(type='ResNet', depth=34, stem='stl'),
    momentum=0.999,
    # One GPU's batch in groups of 32, as 8 GPUs would normalise it.
    split_bn=8,
    head=dict(type='MoCoHead', batch_size=256, queue_size=32768, temperature=0.2))
train_cfg = dict(max_epochs=200, val_interval=20, schedule=dict(type='Cosine'))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4))
val_evaluator = [dict(type='KNNMetric', k=10), dict(type='KMeansMetric')]
