# A tenth of the labels, evenly over the classes; from a MoCo backbone:
#     odc train THIS --cfg-options model.pretrained=work_dirs/moco_resnet18-w16_1xb128-40e_cifar10/epoch_40.pth
_base_ = './finetune_resnet18-w16_1xb256-30e_cifar10.py'

train_cfg = dict(max_epochs=100, val_interval=100, label_fraction=0.1)
