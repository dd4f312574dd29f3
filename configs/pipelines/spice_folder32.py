# SPICE from scratch on a folder of small images, for a computer without a GPU:
#     odc spice configs/pipelines/spice_folder32.py --clusters 10 --cfg-options data.dataset.root=/path/to/folder
pipeline = dict(
    moco='../moco/moco_resnet18-w16_1xb128-40e_folder32.py',
    self='../spice/spice-self_resnet18-w16_1xb128-30e_folder32.py',
    # For features of a short training; with those of the paper's settings its .99 or .95 keeps enough of every cluster.
    reliable=dict(neighbours=100, threshold=0.4),
    semi='../spice/spice-semi_resnet18-w16_1xb192-10e_folder32.py')
