# ODC as the fine-tuning of a backbone that MoCo has trained on the same digits:
#     --cfg-options model.pretrained=work_dirs/moco_convnet_1xb64-100e_digits/epoch_100.pth
_base_ = './odc_convnet_1xb64-30e_digits.py'
# The backbone is worth clustering, the new neck's projection of it less.
model = dict(head=dict(start='backbone', kmeans_iter=100, kmeans_redo=20))
optim_wrapper = dict(optimizer=dict(lr=0.01))
