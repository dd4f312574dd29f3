# scikit-learn's 1,797 handwritten digits (8x8, grey), enlarged to 16x16.
_finish = [dict(type='ToFloat'), dict(type='Normalize', mean=[0.31], std=[0.36])]
data = dict(
    dataset=dict(type='Digits', size=16),
    views=dict(
        extract=_finish,
        train=[
            dict(type='RandomAffine', degrees=10, translate=[0.1, 0.1], scale=[0.9, 1.1], interpolation='bilinear'),
        ] + _finish,
        # The row's variant turns the image by 90 degrees, after what else moves it.
        rotated=[
            dict(type='RandomAffine', degrees=10, translate=[0.1, 0.1], scale=[0.9, 1.1], interpolation='bilinear'),
            dict(type='Rotate90'),
        ] + _finish,
        # No flips: they turn a digit into none, or into another one.
        weak=[
            dict(type='RandomAffine', degrees=5, translate=[0.07, 0.07], interpolation='bilinear'),
        ] + _finish,
        strong=[
            dict(
                type='RandomAffine',
                degrees=15,
                translate=[0.13, 0.13],
                scale=[0.85, 1.15],
                shear=[-11.5, 11.5, -11.5, 11.5],
                interpolation='bilinear'),
            dict(type='ElasticTransform', alpha=18.0, sigma=3.0),
            dict(type='Cutout', size=[1, 6]),
        ] + _finish,
    ),
    num_workers=0,
    extract_batch_size=256)
