# A hundredth of the labels, 18 images, one or two of each digit; from a MoCo backbone:
#     odc train THIS --cfg-options model.pretrained=work_dirs/moco_convnet_1xb64-100e_digits/epoch_100.pth
# Evaluated on all images, the labelled hundredth among them.
_base_ = './finetune_convnet_1xb64-20e_digits.py'

train_cfg = dict(max_epochs=100, val_interval=100, label_fraction=0.01)
