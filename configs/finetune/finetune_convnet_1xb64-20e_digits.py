# All labels of scikit-learn's digits, from a MoCo backbone:
#     odc train THIS --cfg-options model.pretrained=work_dirs/moco_convnet_1xb64-100e_digits/epoch_100.pth
# All images are trained on and evaluated: acc shows that the training works, not how well it generalises.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/digits.py']

model = dict(
    type='ClusterModel',
    backbone=dict(type='ConvNet', in_channels=1, widths=[16, 32, 64]),
    head=dict(type='ClassifierHead', num_classes=10, batch_size=64))
train_cfg = dict(max_epochs=20, val_interval=20, schedule=dict(type='Cosine'), label_fraction=1.0)
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    # The new layer starts from nothing.
    paramwise_cfg={'head': dict(lr=0.1)})
