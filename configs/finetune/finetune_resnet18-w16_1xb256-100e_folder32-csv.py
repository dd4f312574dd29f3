# Labels of a table (columns path, label; other images have none), from a MoCo backbone:
#     odc train THIS --cfg-options data.dataset.root=FOLDER train_cfg.label_file=few.csv model.head.num_classes=3 \
#         model.pretrained=work_dirs/moco_resnet18-w16_1xb128-40e_folder32/epoch_40.pth
# With very few, let the first layers stay as they are: model.frozen=[backbone.conv1,backbone.layer1]
_base_ = './finetune_resnet18-w16_1xb256-30e_folder32.py'

train_cfg = dict(max_epochs=100, val_interval=100, label_fraction=None, label_file='labels.csv')
