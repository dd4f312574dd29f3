# ProPos from scratch on scikit-learn's digits, finished by DCBoost: odc run propos_dcboost_digits
recipe = [
    dict(name='propos', config='../propos/propos_convnet_1xb64-150e_digits.py'),
    dict(name='boost', config='../dcboost/dcboost_convnet_1xb256-60e_digits.py', checkpoint='propos'),
]
