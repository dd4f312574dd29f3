# The methods on scikit-learn's digits: odc compare --dataset digits
comparison = dict(
    moco='../moco/moco_convnet_1xb64-300e_digits.py',
    propos='../propos/propos_convnet_1xb64-150e_digits.py',
    methods={
        'dc': '../deepcluster/deepcluster_convnet_1xb64-30e_digits.py',
        'odc': '../odc/odc_convnet_1xb64-30e_digits.py',
        'secu': '../secu/secu_convnet_1xb64-100e_digits.py',
        'deepercluster': '../deepercluster/deepercluster_convnet_1xb64-30e_digits.py',
        'dc-moco': '../deepcluster/deepcluster_convnet_1xb64-30e_digits-moco.py',
        'odc-moco': '../odc/odc_convnet_1xb64-30e_digits-moco.py',
        'scan-moco': '../scan/scan_convnet_1xb256-30e_digits.py',
        'scan-propos': '../scan/scan_convnet_1xb256-30e_digits.py',
        'scan-full': '../pipelines/scan_digits.py',
        'turtle-moco': '../turtle/turtle_convnet_1xb1797-10e_digits.py',
        'temi-moco': '../temi/temi_convnet_1xb64-30e_digits.py',
        'spice': '../pipelines/spice_digits.py',
        'dcboost': '../pipelines/propos_dcboost_digits.py',
    })
