# Vectors in the place of images: features of a network that somebody else has trained, as odc extract writes them.
#     --cfg-options "data.dataset.files=[features.npz]"
# Several files are several spaces. odc compare --features fills them in by itself.
data = dict(
    dataset=dict(type='Features', files=['features.npz']),
    views=dict(extract=[], train=[], weak=[], strong=[]),
    num_workers=0,
    extract_batch_size=4096)
model = dict(
    type='ClusterModel',
    backbone=dict(type='Vectors'),
    frozen=['backbone', 'neck'])
