# ODC on features of a frozen network: the memory is of the features themselves, and its classifier is what trains. A
# small network between them, as the paper's neck, forgot of 5,421 photographs' features what it did not cluster by (kNN
# .64 behind it, .93 in front) and clustered worse.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    neck=dict(type='AvgPool'),
    head=dict(type='ODCHead', num_clusters=10, batch_size=256, min_cluster=0.16, kmeans_redo=20))
train_cfg = dict(max_epochs=30, val_interval=10)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-5),
    # The paper trains the classifier without momentum.
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
