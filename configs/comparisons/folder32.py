# The methods on a folder of small colour images: odc compare --dataset /path/to/folder --clusters 10
comparison = dict(
    moco='../moco/moco_resnet18-w16_1xb128-40e_folder32.py',
    propos='../propos/propos_resnet18-w16_1xb128-40e_folder32.py',
    methods={
        'dc': '../deepcluster/deepcluster_resnet18-w16_1xb128-20e_folder32.py',
        'odc': '../odc/odc_resnet18-w16_1xb128-20e_folder32.py',
        'deepercluster': '../deepercluster/deepercluster_resnet18-w16_1xb128-20e_folder32.py',
        'scan-moco': '../scan/scan_resnet18-w16_1xb512-30e_folder32.py',
        'temi-moco': '../temi/temi_resnet18-w16_1xb256-60e_folder32.py',
        'turtle-moco': '../turtle/turtle_resnet18-w16_1xb2048-10e_folder32.py',
        'spice': '../pipelines/spice_folder32.py',
    })
