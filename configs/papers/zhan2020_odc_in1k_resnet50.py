# ODC on ImageNet, ResNet-50 (Zhan et al., CVPR 2020, arXiv:2006.10645), on 8 GPUs: tools/dist_train.sh THIS 8
# Published: linear probes of the stem and stages 2 to 5 14.8, 31.8, 42.4, 55.8, 57.7 (53.4 on pooled features);
# VOC07 SVM 78.42. Not reproduced here.
_base_ = '../odc/odc_resnet50_8xb64-steplr-440e_in1k.py'
