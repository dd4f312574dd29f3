# ODC on features of a frozen network: the memory is of a small network on them.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    frozen=['backbone'],
    neck=dict(type='ODCNeck', bn_momentum=0.1),
    head=dict(type='ODCHead', num_clusters=10, batch_size=256, min_cluster=0.16, kmeans_redo=20))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-5),
    # The paper trains the classifier without momentum.
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
