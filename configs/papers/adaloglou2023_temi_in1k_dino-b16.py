# TEMI on ImageNet, features of DINO's ViT-B/16 (Adaloglou et al., BMVC 2023, arXiv:2303.17896).
# Published, on the validation images: ACC 58.0, NMI 81.4, ARI 45.9. Not reproduced here. Neighbours: 25. Features are
# standardised, as by the published code; that keeps some images as their own neighbours, which this does not.
_base_ = './adaloglou2023_temi_cifar10_dino-b16.py'

model = dict(head=dict(num_clusters=1000, neighbours=25, normalize='standard'))
data = dict(
    dataset=dict(
        files=['features/in1k-train_dino-b16.npz'],
        pictures=dict(root='data/imagenet/train')),
    eval_dataset=dict(
        files=['features/in1k-val_dino-b16.npz'],
        pictures=dict(root='data/imagenet/val')))
