# The narrow network on CIFAR-10, for a computer without a GPU; --cfg-options data.dataset.download=True fetches it.
_base_ = './moco_resnet18-w16_1xb128-40e_folder32.py'
data = dict(
    dataset=dict(_delete_=True, type='TorchvisionDataset', name='CIFAR10', root='data', split='train'),
    eval_dataset=dict(type='TorchvisionDataset', name='CIFAR10', root='data', split='test'))
