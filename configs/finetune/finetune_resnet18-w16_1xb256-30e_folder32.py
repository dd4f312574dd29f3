# All labels of a folder of small images, one sub-folder a class, from a MoCo backbone:
#     odc train THIS --cfg-options model.pretrained=work_dirs/moco_resnet18-w16_1xb128-40e_folder32/epoch_40.pth
# Set model.head.num_classes, and data.eval_dataset to a folder of other images: without it, acc is that of the
# images trained on.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/folder32.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ResNet', depth=18, stem='cifar', width=16),
    head=dict(type='ClassifierHead', num_classes=10, batch_size=256))
train_cfg = dict(max_epochs=30, val_interval=10, schedule=dict(type='Cosine'), label_fraction=1.0)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    # The new layer starts from nothing.
    paramwise_cfg={'head': dict(lr=0.2)})
