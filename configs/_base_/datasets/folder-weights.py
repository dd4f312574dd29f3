# A folder of photographs, seen as the weights of model.backbone want them:
#     --cfg-options data.dataset.root=/path/to/folder
# The numbers of pixels in 'train' are those of most weights; behind such a crop AsPretrained only normalises.
_finish = [dict(type='AsPretrained')]
data = dict(
    dataset=dict(type='ImageFolder', root='data/images'),
    views=dict(
        extract=_finish,
        train=[
            dict(type='RandomResizedCrop', size=224, scale=[0.2, 1.0]),
            dict(type='RandomHorizontalFlip'),
            dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
            dict(type='RandomGrayscale', p=0.2),
        ] + _finish,
    ),
    num_workers=2,
    extract_batch_size=64)
