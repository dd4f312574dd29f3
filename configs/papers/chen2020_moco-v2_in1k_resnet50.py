# MoCo v2 on ImageNet, ResNet-50, 200 epochs (Chen et al., 2020, arXiv:2003.04297); 8 GPUs: tools/dist_train.sh THIS 8
# Published: linear classification 67.5 top-1. Not reproduced here.
_base_ = '../moco/moco_resnet50_8xb32-200e_in1k.py'
