# ProPos from scratch on CIFAR-10's training images, finished by DCBoost: odc run propos_dcboost_cifar10
recipe = [
    dict(name='propos', config='../propos/propos_resnet18_1xb512-1000e_cifar10.py'),
    dict(name='boost', config='../dcboost/dcboost_resnet18_1xb512-200e_cifar10.py', checkpoint='propos'),
]
