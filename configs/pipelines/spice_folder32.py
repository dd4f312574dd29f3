# SPICE from scratch on a folder of small images, for a computer without a GPU:
#     odc run spice_folder32 --clusters 10 --cfg-options data.dataset.root=/path/to/folder
recipe = [
    dict(name='moco', config='../moco/moco_resnet18-w16_1xb128-40e_folder32.py'),
    dict(name='embeddings', type='Extract', checkpoint='moco'),
    dict(name='self', config='../spice/spice-self_resnet18-w16_1xb128-30e_folder32.py', backbone='moco'),
    # For features of a short training; with those of the paper's settings its .99 or .95 keeps enough of every cluster.
    dict(name='reliable', type='Reliable', checkpoint='self', features='embeddings', neighbours=100, threshold=0.4),
    dict(
        name='semi',
        config='../spice/spice-semi_resnet18-w16_1xb192-10e_folder32.py',
        backbone='moco',
        labels='reliable'),
]
