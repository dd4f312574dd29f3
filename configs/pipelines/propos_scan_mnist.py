# ProPos and SCAN from scratch on MNIST: odc run propos_scan_mnist
recipe = [
    dict(name='propos', config='../propos/propos_convnet_1xb64-12e_mnist.py'),
    dict(name='scan', config='../scan/scan_convnet_1xb512-10e_mnist.py', backbone='propos'),
]
