# RotNet (arXiv:1803.07728) is DeeperCluster with one cluster: pre-training, evaluated by its features.
_base_ = './deepercluster_convnet_1xb64-30e_digits.py'

model = dict(head=dict(num_clusters=1, num_super=1))
val_evaluator = [dict(type='KNNMetric', k=10), dict(type='KMeansMetric', num_clusters=10)]
