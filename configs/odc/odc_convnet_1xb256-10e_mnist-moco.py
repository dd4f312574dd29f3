# ODC as the fine-tuning of a backbone that MoCo has trained on the same images.
_base_ = './odc_convnet_1xb256-10e_mnist.py'
# The backbone is worth clustering, the new neck's projection of it less. Of 60,000 images k-means has not come to rest
# after the paper's 20 iterations, and the best of ten starts may be none of the good ones: of 60 random ones on one
# backbone some one in eight ended in the best optimum (.951), the others at .87 or less.
model = dict(head=dict(start='backbone', kmeans_iter=100, kmeans_redo=50))
optim_wrapper = dict(optimizer=dict(lr=0.01))
