# A folder of photographs, seen at 224x224:
#     --cfg-options data.dataset.root=/path/to/folder
_finish = [dict(type='ToFloat'), dict(type='Normalize', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])]
data = dict(
    dataset=dict(type='ImageFolder', root='data/images'),
    views=dict(
        extract=[dict(type='Resize', size=256), dict(type='CenterCrop', size=224)] + _finish,
        # ODC's augmentation (arXiv:2006.10645), which DC can do with instead of Sobel.
        train=[
            dict(type='RandomResizedCrop', size=224, scale=[0.2, 1.0]),
            dict(type='RandomHorizontalFlip'),
            dict(type='RandomRotation', degrees=2),
            dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=1.0, hue=0.5),
            dict(type='RandomGrayscale', p=0.2),
        ] + _finish,
    ),
    num_workers=4,
    extract_batch_size=128)
