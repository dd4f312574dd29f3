# SPICE's last stage on STL-10, ResNet-34 (Niu et al., IEEE TIP 2022, arXiv:2103.09382).
# Published: ACC 93.8, NMI 87.2, ARI 87.0. Not reproduced here.
_base_ = '../spice/spice-semi_resnet34-stl_1xb512-1024e_stl10.py'
