# DC as the fine-tuning of a backbone that MoCo has trained on the same images.
_base_ = './deepcluster_convnet_1xb256-10e_mnist.py'
optim_wrapper = dict(optimizer=dict(lr=0.03))
