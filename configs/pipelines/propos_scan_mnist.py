# From scratch on MNIST, by what measured best: odc run propos_scan_mnist
recipe = [
    dict(name='propos', config='../propos/propos_convnet_1xb64-12e_mnist.py'),
    dict(name='scan', config='../scan/scan_convnet_1xb512-10e_mnist.py', backbone='propos'),
    dict(name='reliable', type='Reliable', checkpoint='scan', neighbours=100, threshold=0.99),
    dict(name='semi', config='../spice/spice-semi_convnet_1xb256-10e_mnist.py', backbone='propos', labels='reliable'),
]
