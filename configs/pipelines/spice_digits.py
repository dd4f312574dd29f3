# SPICE from scratch on scikit-learn's digits: odc run spice_digits
recipe = [
    dict(name='moco', config='../moco/moco_convnet_1xb64-300e_digits.py'),
    dict(name='embeddings', type='Extract', checkpoint='moco'),
    dict(name='self', config='../spice/spice-self_convnet_1xb128-30e_digits.py', backbone='moco'),
    # A digit has some 180 images, so 100 neighbours would reach beyond it.
    dict(name='reliable', type='Reliable', checkpoint='self', features='embeddings', neighbours=50, threshold=0.99),
    dict(name='semi', config='../spice/spice-semi_convnet_1xb256-20e_digits.py', backbone='moco', labels='reliable'),
]
