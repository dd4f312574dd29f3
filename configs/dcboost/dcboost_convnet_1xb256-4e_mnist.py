# DCBoost on MNIST, from a checkpoint of ProPos (configs/pipelines/propos_dcboost_mnist.py) or a backbone.
_base_ = '../propos/propos_convnet_1xb64-12e_mnist.py'

model = dict(
    head=dict(
        _delete_=True, type='DCBoostHead', num_clusters=10, batch_size=256, hidden_channels=256, out_channels=64,
        warmup=1, kmeans_redo=10))
train_cfg = dict(max_epochs=4, val_interval=2, schedule=dict(type='Cosine', warmup=0.0))
