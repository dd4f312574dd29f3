# ODC as the fine-tuning of a backbone that MoCo has trained on the same images.
_base_ = './odc_convnet_1xb256-10e_mnist.py'
optim_wrapper = dict(optimizer=dict(lr=0.01))
