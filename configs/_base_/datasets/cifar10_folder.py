# CIFAR-10 as a folder of pictures, DIR/{train,test}/<class>/<index>.jpg.
_base_ = ['./cifar10_deit.py']
data_layout = None  # --data-root names the folder
data_root = 'data/cifar10_folder'
data_preprocessor = dict(to_rgb=True)  # pictures are read as BGR
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
folder = dict(type='CustomDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(folder, _delete_=True, data_prefix='train', pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(folder, _delete_=True, data_prefix='test', pipeline=test_pipeline)
)
test_dataloader = val_dataloader
