# SPICE's last stage on the 20 super-classes of CIFAR-100, ResNet-18 (Niu et al., IEEE TIP 2022, arXiv:2103.09382).
# Published: ACC 53.8. Not reproduced here.
_base_ = '../spice/spice-semi_resnet18_1xb512-1024e_cifar100-20.py'
