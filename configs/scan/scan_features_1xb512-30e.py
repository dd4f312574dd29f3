# SCAN on features of a frozen network.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

# Batches of 512 and a learning rate ten times the paper's: linear heads alone, and few steps an epoch. Ten neighbours
# are within small classes; a small lambda lets clusters differ in size where the features say so, yet above 1 all stay
# in use. The answer is the consensus of all heads; answer='best' is the paper's.
model = dict(
    head=dict(
        type='SCANHead',
        num_clusters=10,
        num_heads=10,
        neighbours=10,
        batch_size=512,
        entropy_weight=1.3,
        answer='consensus',
        normalize='unit'))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=1e-3, weight_decay=1e-4))
val_evaluator = [dict(type='ClusterMetrics'), dict(type='KNNMetric', k=10)]
