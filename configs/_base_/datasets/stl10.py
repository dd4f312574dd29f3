# torchvision's STL-10, the 13,000 labelled images; --cfg-options data.dataset.download=True fetches it.
_base_ = './folder96.py'
data = dict(dataset=dict(_delete_=True, type='TorchvisionDataset', name='STL10', root='data', split='train+test'))
