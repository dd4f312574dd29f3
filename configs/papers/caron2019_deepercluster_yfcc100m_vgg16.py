# DeeperCluster on 96 M images of YFCC100M, VGG-16 on Sobel gradients (Caron et al., ICCV 2019, arXiv:1905.01278).
# Published: ImageNet, fine-tuned, 74.9 top-1 (0.8 more than from random weights). Not reproduced here.
_base_ = '../deepercluster/deepercluster_vgg16-sobel_64xb48-100e_yfcc100m.py'
