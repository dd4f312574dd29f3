# A folder of colour images seen at 96x96 (STL-10 and the like):
#     --cfg-options data.dataset.root=/path/to/folder
_finish = [dict(type='ToFloat'), dict(type='Normalize', mean=[0.45, 0.44, 0.41], std=[0.26, 0.26, 0.27])]
_square = [dict(type='Resize', size=96), dict(type='CenterCrop', size=96)]
_weak = [dict(type='RandomCrop', size=96, padding=12, padding_mode='reflect'), dict(type='RandomHorizontalFlip')]
_jitter = dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
# MoCo v2's view, seen twice.
_moco = [
    dict(type='RandomResizedCrop', size=96, scale=[0.2, 1.0]),
    dict(type='RandomApply', p=0.8, transforms=[_jitter]),
    dict(type='RandomGrayscale', p=0.2),
    dict(type='RandomApply', p=0.5, transforms=[dict(type='GaussianBlur', kernel_size=9, sigma=[0.1, 2.0])]),
    dict(type='RandomHorizontalFlip'),
] + _finish
data = dict(
    dataset=dict(type='ImageFolder', root='data/images'),
    # A view costs nothing where no head asks for it.
    views=dict(
        extract=_square + _finish,
        train=[
            dict(type='RandomResizedCrop', size=96, scale=[0.2, 1.0]),
            dict(type='RandomHorizontalFlip'),
            _jitter,
            dict(type='RandomGrayscale', p=0.2),
        ] + _finish,
        weak=_square + _weak + _finish,
        strong=_square + [
            dict(type='RandomHorizontalFlip'),
            dict(type='RandomOps', n=4),
            dict(type='Cutout', size=[1, 32]),
        ] + _finish,
        query=_moco,
        key=_moco,
        # The row's variant turns the image by 90 degrees after crop and flip.
        rotated=_square + _weak + [dict(type='Rotate90')] + _finish,
    ),
    num_workers=4,
    extract_batch_size=256)
