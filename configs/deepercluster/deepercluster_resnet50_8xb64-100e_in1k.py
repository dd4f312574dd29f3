# DeeperCluster with ResNet-50 on ImageNet, on 8 GPUs: tools/dist_train.sh THIS 8. Clusters as many as DeepCluster's;
# the paper has no such setting.
#
# Memory, by arithmetic (docs/scaling.md), each GPU: the 16 sub-classifiers of 2,500 x 2,048 take 0.31 GiB, with
# gradient and momentum 0.92 GiB; the features of a clustering 1.2 GiB, twice that for a moment; 5.1 M rows of labels
# 0.15 GiB.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder224.py']

_finish = [dict(type='ToFloat'), dict(type='Normalize', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])]
model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=50),
    head=dict(type='DeeperClusterHead', num_clusters=10000, num_super=4, batch_size=512))
data = dict(
    dataset=dict(root='data/imagenet/train'),
    views=dict(
        # Colours instead of Sobel, so jitter: else the colour of an image gives its cluster away.
        rotated=[
            dict(type='RandomResizedCrop', size=224, scale=[0.2, 1.0]),
            dict(type='RandomHorizontalFlip'),
            dict(type='Rotate90'),
            dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=1.0, hue=0.5),
            dict(type='RandomGrayscale', p=0.2),
        ] + _finish),
    num_workers=8)
train_cfg = dict(max_epochs=100, val_interval=100)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-5))
# No ClusterMetrics: they would hold the scores of 10,000 clusters for every image, 48 GiB.
val_evaluator = None
