# SPICE-Self on CIFAR-10, ResNet-18 (Niu et al., IEEE TIP 2022, arXiv:2103.09382).
# Published, trained on the training and evaluated on the test images: ACC 84.5, NMI 73.9, ARI 70.9. Not reproduced
# here; benchmarks/results/cifar10_spice.md has what a narrow network reaches on a processor.
_base_ = '../spice/spice-self_resnet18_1xb128-30e_cifar10.py'
