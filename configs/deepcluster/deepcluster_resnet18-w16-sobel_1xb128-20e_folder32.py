# On edges instead of colours, as the paper: every view ends in Sobel, which gives two channels.
_base_ = './deepcluster_resnet18-w16_1xb128-20e_folder32.py'

_finish = [dict(type='ToFloat'), dict(type='Sobel')]
model = dict(backbone=dict(in_channels=2))
data = dict(
    views=dict(
        _delete_=True,
        extract=[dict(type='Resize', size=32), dict(type='CenterCrop', size=32)] + _finish,
        train=[
            dict(type='RandomResizedCrop', size=32, scale=[0.2, 1.0]),
            dict(type='RandomHorizontalFlip'),
        ] + _finish,
    ))
