# The release's fine-tuning (configs/imagenet_qna_finetune.py, lines 20-58): 30 epochs, AdamW at a
# constant 1e-5 x batch / 256 (train.py, line 361), so 4e-5 at batch 1024, no warm-up, no gradient
# clipping. Weight decay 1e-8 on norms and biases too; tables and queries are exempt (line 42).
_base_ = ['./adamw.py']
optim_wrapper = dict(
    optimizer=dict(lr=1e-5 * 1024 / 256, weight_decay=1e-8),
    paramwise_cfg=dict(norm_decay_mult=1.0, bias_decay_mult=1.0),
)
param_scheduler = []
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=1)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
