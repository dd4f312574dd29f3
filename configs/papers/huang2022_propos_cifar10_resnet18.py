# ProPos on CIFAR-10, ResNet-18 (Huang et al., IEEE TPAMI 2022, arXiv:2111.11821).
# Published, trained and evaluated on training and test images together: ACC 94.3, NMI 88.6, ARI 88.4. Not reproduced
# here, where it trains on the training images and is evaluated on the test images.
_base_ = '../propos/propos_resnet18_1xb512-1000e_cifar10.py'
