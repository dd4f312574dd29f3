# A linear classifier on features of a frozen network, by the labels of a file; what odc refine trains.
#     odc train THIS --cfg-options "data.dataset.files=[features.npz]" model.head.num_classes=43 \
#         train_cfg.label_file=labels.csv
_base_ = ['../_base_/default_runtime.py', '../_base_/datasets/features.py']

model = dict(head=dict(type='ClassifierHead', num_classes=10, batch_size=256, normalize='unit'))
train_cfg = dict(max_epochs=10, val_interval=10, schedule=dict(type='Cosine'), label_file='labels.csv')
optim_wrapper = dict(constructor='ByName', optimizer=dict(type='Adam', lr=1e-2))
