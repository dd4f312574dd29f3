# SPICE from scratch on MNIST: odc spice configs/pipelines/spice_mnist.py
pipeline = dict(
    moco='../moco/moco_convnet_1xb64-12e_mnist.py',
    self='../spice/spice-self_convnet_1xb128-1e_mnist.py',
    reliable=dict(neighbours=100, threshold=0.99),
    semi='../spice/spice-semi_convnet_1xb256-10e_mnist.py')
