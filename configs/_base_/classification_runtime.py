# Classification, by epochs.
_base_ = ['./default_runtime.py']
default_scope = 'mmpretrain'
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)
default_hooks = dict(visualization=dict(type='VisualizationHook', enable=False))
