# ProPos and SCAN from scratch on scikit-learn's digits: odc run propos_scan_digits
recipe = [
    dict(name='propos', config='../propos/propos_convnet_1xb64-150e_digits.py'),
    # SCAN on the backbone's features: they hold what k-means of the projections loses.
    dict(name='scan', config='../scan/scan_convnet_1xb256-30e_digits.py', backbone='propos'),
]
