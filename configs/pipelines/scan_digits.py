# SCAN from scratch on scikit-learn's digits: odc run scan_digits
recipe = [
    dict(name='moco', config='../moco/moco_convnet_1xb64-300e_digits.py'),
    dict(name='scan', config='../scan/scan_convnet_1xb256-30e_digits.py', backbone='moco'),
    dict(name='selflabel', config='../scan/selflabel_convnet_1xb600-30e_digits.py', checkpoint='scan'),
]
