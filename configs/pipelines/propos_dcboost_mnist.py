# ProPos from scratch on MNIST, finished by DCBoost: odc run propos_dcboost_mnist
recipe = [
    dict(name='propos', config='../propos/propos_convnet_1xb64-12e_mnist.py'),
    dict(name='boost', config='../dcboost/dcboost_convnet_1xb256-4e_mnist.py', checkpoint='propos'),
]
