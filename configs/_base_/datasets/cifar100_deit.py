# CIFAR-100, with its own mean and standard deviation.
_base_ = ['./cifar10_deit.py']
data_layout = 'cifar100'  # of tools/prepare_data.py
data_root = 'data/cifar100'
mean, std = [129.3105, 124.1085, 112.404], [68.2125, 65.4075, 70.4055]
data_preprocessor = dict(num_classes=100, mean=mean, std=std)
train_pipeline = [
    *_base_.train_pipeline[:2],  # random crop and flip
    dict(_base_.rand_augment, hparams=dict(pad_val=[129, 124, 112], interpolation='bicubic')),
    dict(_base_.random_erasing, fill_color=mean, fill_std=std),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(type='CIFAR100', data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type='CIFAR100', data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 5))
test_evaluator = val_evaluator
