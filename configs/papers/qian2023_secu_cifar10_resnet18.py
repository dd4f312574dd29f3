# SeCu on CIFAR-10, ResNet-18 (Qian, ICCV 2023, arXiv:2311.14310).
# Published, with SCAN's self-labelling behind it: ACC 93.0, NMI 86.1, ARI 85.7. Not reproduced here, and this is the
# first stage alone; the second is configs/papers/van-gansbeke2020_selflabel_cifar10_resnet18.py.
_base_ = '../secu/secu_resnet18_1xb128-401e_cifar10.py'
