# SPICE-Semi's setting for the 20 super-classes of CIFAR-100 (arXiv:2103.09382), from the reliable labels of
# spice-self_resnet18_1xb128-100e_cifar100-20.py.
_base_ = './spice-semi_resnet18_1xb512-1024e_cifar10.py'

model = dict(
    pretrained='work_dirs/moco_resnet18_1xb512-200e_cifar100/epoch_200.pth',
    head=dict(num_clusters=20))
data = dict(dataset=dict(name='CIFAR100-20'), eval_dataset=dict(name='CIFAR100-20'))
train_cfg = dict(label_file='work_dirs/spice-self_resnet18_1xb128-100e_cifar100-20/reliable.npz')
