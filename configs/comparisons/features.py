# The methods on features that do not change: odc compare --features SOURCE --dataset /path/to/folder --clusters 20
comparison = dict(
    methods={
        'dc': '../deepcluster/deepcluster_features_1xb256-30e.py',
        'odc': '../odc/odc_features_1xb256-30e.py',
        'deepercluster': '../deepercluster/deepercluster_features_1xb256-30e.py',
        'scan': '../scan/scan_features_1xb512-30e.py',
        'spice-self': '../spice/spice-self_features_1xb128-30e.py',
        'turtle': '../turtle/turtle_features_1xb2048-10e.py',
        'temi': '../temi/temi_features_1xb256-60e.py',
    })
