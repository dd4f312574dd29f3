# TEMI on CIFAR-10, features of DINO's ViT-B/16 (Adaloglou et al., BMVC 2023, arXiv:2303.17896). Published, on the test
# images: ACC 94.5, NMI 88.6, ARI 88.5. Not reproduced here. The rate is 1e-4 for 256 pairs.
#     odc extract --features dino-base --dataset data/cifar10/train --out features/cifar10-train_dino-b16.npz
# and the same of data/cifar10/test.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    backbone=dict(spaces=[768]),
    head=dict(type='TEMIHead', num_clusters=10, num_heads=50, neighbours=50, batch_size=512))
data = dict(
    dataset=dict(
        files=['features/cifar10-train_dino-b16.npz'],
        pictures=dict(type='ImageFolder', root='data/cifar10/train')),
    eval_dataset=dict(
        type='Features',
        files=['features/cifar10-test_dino-b16.npz'],
        pictures=dict(type='ImageFolder', root='data/cifar10/test')))
train_cfg = dict(max_epochs=100, val_interval=100, schedule=dict(type='Constant', warmup=0.2))
optim_wrapper = dict(
    constructor='ByName',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg={'head.student.bias': dict(weight_decay=0.0), 'head.student.gain': dict(weight_decay=0.0)})
