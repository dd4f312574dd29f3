# TURTLE on ImageNet, two spaces: CLIP's ViT-L/14 and DINOv2's ViT-g/14 (Gadetsky et al., ICML 2024, arXiv:2406.07236).
# Published, on the validation images: ACC 72.9. Not reproduced here.
_base_ = './gadetsky2024_turtle_cifar10_clip-l14-dinov2-g14.py'

model = dict(head=dict(num_clusters=1000))
data = dict(
    dataset=dict(
        files=['features/in1k-train_clip-l14.npz', 'features/in1k-train_dinov2-g14.npz'],
        pictures=dict(root='data/imagenet/train')),
    eval_dataset=dict(
        files=['features/in1k-val_clip-l14.npz', 'features/in1k-val_dinov2-g14.npz'],
        pictures=dict(root='data/imagenet/val')))
