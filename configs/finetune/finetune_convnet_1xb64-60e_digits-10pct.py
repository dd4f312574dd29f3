# A tenth of the labels, 180 images; from a MoCo backbone:
#     odc train THIS --cfg-options model.pretrained=work_dirs/moco_convnet_1xb64-100e_digits/epoch_100.pth
# Evaluated on all images, the labelled tenth among them.
_base_ = './finetune_convnet_1xb64-20e_digits.py'

train_cfg = dict(max_epochs=60, val_interval=60, label_fraction=0.1)
