# TURTLE on CIFAR-10, two spaces: CLIP's ViT-L/14 and DINOv2's ViT-g/14 (Gadetsky et al., ICML 2024, arXiv:2406.07236).
# Published, on the test images: ACC 99.5, NMI 98.5, ARI 98.9 (its NMI by the geometric mean: nmi_geometric). Not
# reproduced here. 6,000 steps; features as the networks give them.
#     odc extract --features clip-l14 --dataset data/cifar10/train --out features/cifar10-train_clip-l14.npz
# and the same of dinov2-giant, and of data/cifar10/test.
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(
    backbone=dict(spaces=[768, 1536]),
    head=dict(
        type='TurtleHead',
        num_clusters=10,
        batch_size=10000,
        steps=100,
        inner_steps=10,
        inner_lr=1e-3,
        gamma=10.0))
data = dict(
    dataset=dict(
        files=['features/cifar10-train_clip-l14.npz', 'features/cifar10-train_dinov2-g14.npz'],
        pictures=dict(type='ImageFolder', root='data/cifar10/train')),
    eval_dataset=dict(
        type='Features',
        files=['features/cifar10-test_clip-l14.npz', 'features/cifar10-test_dinov2-g14.npz'],
        pictures=dict(type='ImageFolder', root='data/cifar10/test')))
train_cfg = dict(max_epochs=60, val_interval=60)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
