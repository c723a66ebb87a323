# Detection, by iterations.
_base_ = ['./detection_runtime.py']
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000, save_last=True))
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
