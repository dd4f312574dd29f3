# SPICE-Self on STL-10, ResNet-34 (Niu et al., IEEE TIP 2022, arXiv:2103.09382).
# Published: ACC 91.0, NMI 82.0, ARI 81.5. Not reproduced here.
_base_ = '../spice/spice-self_resnet34-stl_1xb128-100e_stl10.py'
