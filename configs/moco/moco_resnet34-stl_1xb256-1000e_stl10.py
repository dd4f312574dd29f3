# SPICE's MoCo v2 for STL-10 (arXiv:2103.09382): all 113,000 images, 65,536 keys, 1,000 epochs;
# --cfg-options data.dataset.download=True fetches them.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/stl10.py']

model = dict(
    type='MoCo',
    backbone=dict(type='ResNet', depth=34, stem='stl'),
    momentum=0.999,
    # One GPU's batch in groups of 32, as 8 GPUs would normalise it.
    split_bn=8,
    head=dict(type='MoCoHead', batch_size=256, queue_size=65536, temperature=0.2))
data = dict(dataset=dict(split='train+test+unlabeled'))
train_cfg = dict(max_epochs=1000, val_interval=100, schedule=dict(type='Cosine'))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4))
val_evaluator = [dict(type='KNNMetric', k=10), dict(type='KMeansMetric')]
