# Common to all tasks. `custom_imports` makes these configs work with the toolboxes' own scripts,
# also where mmcv has no compiled ops.
custom_imports = dict(imports=['mmvitattn'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmvitattn.SafeCheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    exact_resume=dict(type='mmvitattn.ExactResumeHook'),
    saliency=dict(type='mmvitattn.SaliencyHook'),  # for key-only attention
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),  # tools/train.py takes gloo where there is no GPU
)
vis_backends = [dict(type='LocalVisBackend')]
log_processor = dict(type='LogProcessor', window_size=50)
log_level = 'INFO'
load_from = None
resume = False
