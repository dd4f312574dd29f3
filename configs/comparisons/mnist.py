# The methods on MNIST's 60,000 training images: odc compare --dataset mnist
comparison = dict(
    moco='../moco/moco_convnet_1xb64-12e_mnist.py',
    propos='../propos/propos_convnet_1xb64-12e_mnist.py',
    methods={
        'dc': '../deepcluster/deepcluster_convnet_1xb256-10e_mnist.py',
        'odc': '../odc/odc_convnet_1xb256-10e_mnist.py',
        'secu': '../secu/secu_convnet_1xb64-10e_mnist.py',
        'deepercluster': '../deepercluster/deepercluster_convnet_1xb256-10e_mnist.py',
        'dc-moco': '../deepcluster/deepcluster_convnet_1xb256-10e_mnist-moco.py',
        'odc-moco': '../odc/odc_convnet_1xb256-10e_mnist-moco.py',
        'scan-moco': '../scan/scan_convnet_1xb512-10e_mnist.py',
        'scan-propos': '../scan/scan_convnet_1xb512-10e_mnist.py',
        'turtle-moco': '../turtle/turtle_convnet_1xb10000-10e_mnist.py',
        'temi-moco': '../temi/temi_convnet_1xb512-10e_mnist.py',
        'spice': '../pipelines/spice_mnist.py',
        'dcboost': '../pipelines/propos_dcboost_mnist.py',
    })
