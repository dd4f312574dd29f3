# DCBoost on CIFAR-10's training images, ResNet-18, from a checkpoint of ProPos or a backbone.
_base_ = '../propos/propos_resnet18_1xb512-1000e_cifar10.py'

model = dict(head=dict(_delete_=True, type='DCBoostHead', num_clusters=10, batch_size=512))
train_cfg = dict(max_epochs=200, val_interval=50, schedule=dict(type='Cosine', warmup=0.0))
