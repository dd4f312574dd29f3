# RotNet (arXiv:1803.07728) is DeeperCluster with one cluster: pre-training, evaluated by its features.
_base_ = './deepercluster_resnet18-w16_1xb128-20e_folder32.py'

model = dict(head=dict(num_clusters=1, num_super=1))
val_evaluator = [dict(type='KNNMetric', k=10), dict(type='KMeansMetric')]
