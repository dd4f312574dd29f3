# TEMI on CIFAR-100, features of DINO's ViT-B/16 (Adaloglou et al., BMVC 2023, arXiv:2303.17896).
# Published, on the test images: ACC 67.1, NMI 76.9, ARI 53.3. Not reproduced here.
_base_ = './adaloglou2023_temi_cifar10_dino-b16.py'

model = dict(head=dict(num_clusters=100))
data = dict(
    dataset=dict(
        files=['features/cifar100-train_dino-b16.npz'],
        pictures=dict(root='data/cifar100/train')),
    eval_dataset=dict(
        files=['features/cifar100-test_dino-b16.npz'],
        pictures=dict(root='data/cifar100/test')))
