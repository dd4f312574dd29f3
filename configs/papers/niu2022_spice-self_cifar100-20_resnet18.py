# SPICE-Self on the 20 super-classes of CIFAR-100, ResNet-18 (Niu et al., IEEE TIP 2022, arXiv:2103.09382).
# Published: ACC 46.8 (53.8 after the last stage, niu2022_spice_cifar100-20_resnet18.py). Not reproduced here.
_base_ = '../spice/spice-self_resnet18_1xb128-100e_cifar100-20.py'
