# ODC on DINOv2's features of photographs in a folder; give the number of clusters with
# --cfg-options model.head.num_clusters=K. The network stays as its weights are, so all images pass it once.
# To train it too, at a hundredth of the head's learning rate: --cfg-options model.frozen=False.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder-weights.py']

model = dict(
    type='ClusterModel',
    # The weights are fetched into timm's cache; weights='FILE' in place of pretrained=True reads a file instead.
    backbone=dict(
        type='TimmBackbone', name='vit_small_patch14_dinov2.lvd142m', image_size=224, pretrained=True),
    neck=dict(type='AvgPool'),
    head=dict(type='ODCHead', num_clusters=10, batch_size=64, min_cluster=0.16),
    frozen=['backbone', 'neck'])
train_cfg = dict(max_epochs=20, val_interval=10)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.0003, momentum=0.9, weight_decay=1e-5),
    paramwise_cfg={'head.classifier': dict(lr=0.03, momentum=0.0)})
