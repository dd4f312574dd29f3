# MNIST's 60,000 training images (28x28, grey), seen at 20x20; --cfg-options data.dataset.download=True fetches them.
_finish = [dict(type='ToFloat'), dict(type='Normalize', mean=[0.13], std=[0.31])]
_small = [dict(type='Resize', size=20)]
# No flips: they turn a digit into none, or into another one.
_affine = dict(
    type='RandomAffine',
    degrees=15,
    translate=[0.13, 0.13],
    scale=[0.85, 1.15],
    shear=[-11.5, 11.5, -11.5, 11.5],
    interpolation='bilinear')
_moco = _small + [
    _affine,
    dict(type='ElasticTransform', alpha=45.0, sigma=3.5),
    dict(type='ToFloat'),
    dict(type='GaussianNoise', sigma=0.1),
    dict(type='Normalize', mean=[0.13], std=[0.31]),
]
data = dict(
    dataset=dict(type='TorchvisionDataset', name='MNIST', root='data', split='train'),
    # A view costs nothing where no head asks for it.
    views=dict(
        extract=_small + _finish,
        train=_small + [
            dict(type='RandomAffine', degrees=10, translate=[0.1, 0.1], scale=[0.9, 1.1], interpolation='bilinear'),
        ] + _finish,
        # The row's variant turns the image by 90 degrees, after what else moves it.
        rotated=_small + [
            dict(type='RandomAffine', degrees=10, translate=[0.1, 0.1], scale=[0.9, 1.1], interpolation='bilinear'),
            dict(type='Rotate90'),
        ] + _finish,
        weak=_small + [
            dict(type='RandomAffine', degrees=5, translate=[0.07, 0.07], interpolation='bilinear'),
        ] + _finish,
        strong=_small + [
            _affine,
            dict(type='ElasticTransform', alpha=22.0, sigma=3.0),
            dict(type='Cutout', size=[1, 8]),
        ] + _finish,
        query=_moco,
        key=_moco,
    ),
    num_workers=0,
    extract_batch_size=500)
