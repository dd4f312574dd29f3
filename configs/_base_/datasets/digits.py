# scikit-learn's 1,797 handwritten digits (8x8, grey), enlarged to 16x16.
_finish = [dict(type='ToFloat'), dict(type='Normalize', mean=[0.31], std=[0.36])]
data = dict(
    dataset=dict(type='Digits', size=16),
    views=dict(
        extract=_finish,
        train=[
            dict(type='RandomAffine', degrees=10, translate=[0.1, 0.1], scale=[0.9, 1.1], interpolation='bilinear'),
        ] + _finish,
    ),
    num_workers=0,
    extract_batch_size=256)
