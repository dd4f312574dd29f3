# torchvision's CIFAR-10; --cfg-options data.dataset.download=True fetches it.
_base_ = './folder32.py'
data = dict(
    dataset=dict(_delete_=True, type='TorchvisionDataset', name='CIFAR10', root='data', split='train'),
    eval_dataset=dict(type='TorchvisionDataset', name='CIFAR10', root='data', split='test'))
