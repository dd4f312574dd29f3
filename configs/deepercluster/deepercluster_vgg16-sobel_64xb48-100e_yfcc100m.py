# The paper's setting (arXiv:1905.01278): VGG-16 with batch norm on Sobel gradients, 96 M images of YFCC100M, k =
# 320,000 sub-clusters in m = 4 super-clusters, batches of 3,072. The images are named by a text file, one path a line.
#
# Memory, by arithmetic (docs/scaling.md), on 64 GPUs, each:
#     sub-classifiers 16 x 80,000 x 4,096, float32   19.5 GiB; with gradient and momentum 58.6, DDP's buckets 19.5 more
#     features of a clustering, 1.5 M x 4,096        22.9 GiB, twice that while they are extracted
#     k-means of 80,000 sub-clusters of 4,096         9.8 GiB, and 5.7 for the features of their super-cluster
#     rows of labels, 384 M x 32 bytes               11.4 GiB
#     scores of a step, 48 rows x 80,000              0.1 GiB, some times
# That is too much for 80 GiB. With pca_dim=256 k-means takes 0.6 GiB and 0.4, and on features of 1,024 numbers (a neck)
# these take 5.7 GiB and the sub-classifiers 4.9, with gradient and momentum 14.6.
_base_ = ['../_base_/default_runtime.py']

_finish = [dict(type='ToFloat'), dict(type='Sobel')]
model = dict(
    type='ClusterModel',
    # Features before the last ReLU.
    backbone=dict(type='TorchvisionBackbone', name='vgg16_bn', in_channels=2, linear_layers=2),
    head=dict(type='DeeperClusterHead', num_clusters=320000, num_super=4, batch_size=3072))
data = dict(
    dataset=dict(type='ImageList', file='data/yfcc100m/images.txt'),
    views=dict(
        extract=[dict(type='Resize', size=256), dict(type='CenterCrop', size=224)] + _finish,
        rotated=[
            dict(type='RandomResizedCrop', size=224),
            dict(type='RandomHorizontalFlip'),
            dict(type='Rotate90'),
        ] + _finish,
    ),
    num_workers=8,
    extract_batch_size=128)
train_cfg = dict(max_epochs=100, val_interval=100)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-5))
# Nothing is evaluated: scores of 320,000 clusters for every image fit nowhere. Judge the backbone by its probes.
val_evaluator = None
