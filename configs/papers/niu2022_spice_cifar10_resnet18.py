# SPICE's last stage on CIFAR-10, ResNet-18 (Niu et al., IEEE TIP 2022, arXiv:2103.09382).
# Published, trained on the training and evaluated on the test images: ACC 91.8, NMI 85.0, ARI 83.6. Not reproduced
# here.
_base_ = '../spice/spice-semi_resnet18_1xb512-1024e_cifar10.py'
