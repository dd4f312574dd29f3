# SPICE-Self's setting for the 20 super-classes of CIFAR-100 (arXiv:2103.09382), M = 10,000 images a labelling. Train
# the backbone by configs/moco/moco_resnet18_1xb512-200e_cifar10.py with --cfg-options data.dataset.name=CIFAR100-20
# data.eval_dataset.name=CIFAR100-20 --work-dir work_dirs/moco_resnet18_1xb512-200e_cifar100.
_base_ = './spice-self_resnet18_1xb128-30e_cifar10.py'

model = dict(
    pretrained='work_dirs/moco_resnet18_1xb512-200e_cifar100/epoch_200.pth',
    head=dict(num_clusters=20))
data = dict(dataset=dict(name='CIFAR100-20'), eval_dataset=dict(name='CIFAR100-20'))
train_cfg = dict(max_epochs=100)
