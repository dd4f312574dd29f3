# Digits that nobody has curated: of class c 0.7^c of the images, 582 in all: odc compare --dataset digits-longtail
_base_ = './digits.py'
comparison = dict(
    options={'data.dataset': dict(_delete_=True, type='LongTail', ratio=0.7, dataset=dict(type='Digits', size=16))})
