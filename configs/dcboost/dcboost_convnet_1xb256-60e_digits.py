# DCBoost on scikit-learn's digits, from a checkpoint of ProPos, as in propos_dcboost_digits.py, or a backbone.
_base_ = '../propos/propos_convnet_1xb64-150e_digits.py'

model = dict(
    head=dict(
        _delete_=True, type='DCBoostHead', num_clusters=10, batch_size=256, hidden_channels=256, out_channels=64,
        kmeans_redo=10))
train_cfg = dict(max_epochs=60, val_interval=30, schedule=dict(type='Cosine', warmup=0.0))
