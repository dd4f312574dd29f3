# DeepCluster on ImageNet, VGG-16 on Sobel gradients (Caron et al., ECCV 2018, arXiv:1807.05520).
# Published: VOC07 detection, fine-tuned, 65.9 mAP (67.3 with ImageNet's labels). Not reproduced here.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder224.py']

_finish = [dict(type='ToFloat'), dict(type='Sobel')]
model = dict(
    type='ClusterModel',
    backbone=dict(type='TorchvisionBackbone', name='vgg16_bn', in_channels=2, linear_layers=2),
    head=dict(type='DeepClusterHead', num_clusters=10000, batch_size=256))
data = dict(
    dataset=dict(root='data/imagenet/train'),
    views=dict(
        extract=[dict(type='Resize', size=256), dict(type='CenterCrop', size=224)] + _finish,
        train=[dict(type='RandomResizedCrop', size=224), dict(type='RandomHorizontalFlip')] + _finish),
    num_workers=8)
train_cfg = dict(max_epochs=200, val_interval=200)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-5),
    paramwise_cfg={'head.classifier': dict(momentum=0.0)})
