# DC as the fine-tuning of a backbone that MoCo has trained on the same digits:
#     --cfg-options model.pretrained=work_dirs/moco_convnet_1xb64-100e_digits/epoch_100.pth
_base_ = './deepcluster_convnet_1xb64-30e_digits.py'
# Whitening to 32 dimensions gives noise as much weight as the 10 clusters.
model = dict(head=dict(kmeans_redo=20, pca_dim=16))
optim_wrapper = dict(optimizer=dict(lr=0.03))
