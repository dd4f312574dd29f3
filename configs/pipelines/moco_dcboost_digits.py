# DCBoost on the backbone of MoCo, with a projector and a predictor of its own: odc run moco_dcboost_digits
recipe = [
    dict(name='moco', config='../moco/moco_convnet_1xb64-300e_digits.py'),
    dict(name='boost', config='../dcboost/dcboost_convnet_1xb256-60e_digits.py', backbone='moco'),
]
