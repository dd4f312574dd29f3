# SPICE from scratch on scikit-learn's digits: odc spice configs/pipelines/spice_digits.py
pipeline = dict(
    moco='../moco/moco_convnet_1xb64-300e_digits.py',
    self='../spice/spice-self_convnet_1xb128-30e_digits.py',
    # A digit has some 180 images, so 100 neighbours would reach beyond it.
    reliable=dict(neighbours=50, threshold=0.99),
    semi='../spice/spice-semi_convnet_1xb256-20e_digits.py')
