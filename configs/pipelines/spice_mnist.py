# SPICE from scratch on MNIST: odc run spice_mnist
recipe = [
    dict(name='moco', config='../moco/moco_convnet_1xb64-12e_mnist.py'),
    dict(name='embeddings', type='Extract', checkpoint='moco'),
    dict(name='self', config='../spice/spice-self_convnet_1xb128-1e_mnist.py', backbone='moco'),
    dict(name='reliable', type='Reliable', checkpoint='self', features='embeddings', neighbours=100, threshold=0.99),
    dict(name='semi', config='../spice/spice-semi_convnet_1xb256-10e_mnist.py', backbone='moco', labels='reliable'),
]
