"""Options of the official configuration, against outputs recorded from the release.

The recordings contain the names and shapes of each model's parameters and its outputs for one
image. The values are random numbers, seeded by the names.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmvitattn.converters import convert_qna_vit
from mmvitattn.converters.qna_vit_settings import DEFAULTS, read_official_config
from mmvitattn.errors import CheckpointError
from mmvitattn.models import QnAPooling, QnAViT

ROOT = Path(__file__).parents[2]
DATA = ROOT / 'tests' / 'data' / 'qna'
RECORDED = json.loads((DATA / 'recorded_options.json').read_text())
CASES = RECORDED['cases']
# Options that the parameters do not determine, and the error.
UNKNOWN = {
    'scale_posneg': 'attn_scale_weights is missing',
    'scale_avg': 'attn_scale_weights is missing',
    'scale_none': 'attn_scale_weights is missing',
    'no_window_bias': 'heads and windows',
    'head_qnav1': 'qnav1',
    'head_qnav2': 'qnav1',
    'all_at_once': 'heads and windows',
}


@pytest.fixture(autouse=True)
def quick_start_values(monkeypatch):
    """Start values do not count, and a truncated normal takes long."""
    monkeypatch.setattr(nn.init, 'trunc_normal_', lambda tensor, *args, **kwargs: tensor)


def value(name, shape):
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.rpartition('/')[2] in ('scale', 'scale_param', 'var'):
        return (1 + 0.3 * np.abs(draws)).astype(np.float32)
    factor = 0.1 if len(shape) < 2 else np.prod(shape[:-1]) ** -0.5
    return (draws * factor).astype(np.float32)


def image_of(case):
    height, width = CASES[case]['size']
    image = value('input', (1, height, width, 3)) * np.float32((height * width) ** 0.5)
    return torch.from_numpy(image).permute(0, 3, 1, 2)


def checkpoint_of(case):
    """The release's tree of a case, and its configuration."""
    case = CASES[case]
    without = set(case['without'])
    shapes = {name: s for name, s in RECORDED['shapes'].items() if name not in without}
    tree = {'opt_state': {}, 'step': np.int64(0)}
    for name, shape in (shapes | case['shapes']).items():
        *path, last = name.split('/')
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value(name, shape)
    return tree, RECORDED['config'] | case['config']


class Classifier(nn.Module):
    """A classifier built from the description of a conversion."""

    def __init__(self, description):
        super().__init__()
        self.backbone = QnAViT(**description['backbone'], out_indices=-1)
        neck = dict(description['neck'])
        if neck.pop('type') == 'mmvitattn.QnAPooling':
            self.neck = QnAPooling(**neck)
        else:
            self.neck = lambda maps: tuple(x.mean((2, 3)) for x in maps)
        channels = self.backbone.feature_info.channels()[0]
        self.head = nn.ModuleDict(dict(fc=nn.Linear(channels, description['num_classes'])))

    def forward(self, image):
        return self.head['fc'](self.neck(self.backbone(image))[0])


def assert_equals_recorded(classifier, case):
    recorded = np.load(DATA / 'recorded_options.npz')
    stages = {}
    for i, module in enumerate(
        (*classifier.backbone.downsamples, classifier.backbone.stages[-1][-1])
    ):
        module.register_forward_hook(lambda m, args, output, i=i: stages.update({i: output}))
    outputs = {f'{case}/logits': classifier.eval()(image_of(case))}
    outputs |= {f'{case}/stage_{i}': stage for i, stage in stages.items()}
    compared = 0
    for name in set(recorded) & set(outputs):
        expected = torch.from_numpy(recorded[name])
        assert outputs[name].shape == expected.shape
        difference = (outputs[name] - expected).abs().max() / expected.abs().max()
        assert difference < 2e-6, f'{name}: {difference:.2g}'
        compared += 1
    assert compared == 3


def classifier_of(state_dict, description):
    classifier = Classifier(description)
    missing, unexpected = classifier.load_state_dict(state_dict, strict=False)
    assert not unexpected and all('num_batches_tracked' in name for name in missing)
    return classifier


@torch.no_grad()
@pytest.mark.parametrize('case', list(CASES))
def test_equals_the_official_release(case):
    checkpoint, config = checkpoint_of(case)
    state_dict, description = convert_qna_vit(checkpoint, config=config)
    assert_equals_recorded(classifier_of(state_dict, description), case)
    assert description['dropped'] == ['opt_state', 'step']


@torch.no_grad()
@pytest.mark.parametrize('case', sorted(set(CASES) - set(UNKNOWN)))
def test_options_from_the_parameters(case):
    checkpoint, config = checkpoint_of(case)
    expected, by_config = convert_qna_vit(checkpoint, config=config)
    state_dict, description = convert_qna_vit(checkpoint)
    assert set(state_dict) == set(expected)
    assert all(torch.equal(state_dict[name], expected[name]) for name in expected)
    unknown = ('normalize_queries', 'normalize_stop_grads', 'drop_path_rate')
    expected_options = {
        key: by_config['backbone'].get(key, default) for key, default in DEFAULTS.items()
    }
    for key in set(expected_options) - set(unknown):
        from_shapes = description['backbone'].get(key, DEFAULTS[key])
        if key == 'layer_scale':
            assert (from_shapes is None) == (expected_options[key] is None)
        else:
            assert from_shapes == expected_options[key], key
    if case != 'normalize_some':
        assert_equals_recorded(classifier_of(state_dict, description), case)


@pytest.mark.parametrize('case', sorted(UNKNOWN))
def test_options_that_the_parameters_do_not_determine(case):
    checkpoint, _ = checkpoint_of(case)
    with pytest.raises(CheckpointError, match=f'{UNKNOWN[case]}.*--config FILE.json'):
        convert_qna_vit(checkpoint)


def test_another_configuration_than_the_files_is_refused():
    checkpoint, config = checkpoint_of('published')
    for change, message in (
        (dict(qna_num_queries=3), 'another shape'),
        (dict(stem_type='resnet'), 'conv_7x7'),
        (dict(classification_head_type='qnav1'), 'FusedKQnA_0/query'),
        (dict(qna_attention_scale='ones'), 'attn_scale_pos'),
        (dict(qna_attention_scale='avg'), 'left over .*attn_scale_weights'),
        (dict(lsa_pos_embedding_type='none'), 'left over .*rpe_bias'),
        (dict(qna_down_skip='maxpool'), "qna_down_skip='maxpool'"),
        (dict(qna_implementation='slow'), "qna_implementation='slow'"),
        (dict(stem_type=['patch']), r"stem_type=\['patch'\]"),
        (dict(qna_heads=2), 'qna_heads=2, which is not of type list'),
        (dict(qna_num_queries='2'), "qna_num_queries='2', which is not of type int"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_qna_vit(checkpoint, config=config | change)
    config.pop('lsa_window')
    with pytest.raises(CheckpointError, match='lacks lsa_window'):
        convert_qna_vit(checkpoint, config=config)
    with pytest.raises(ValueError, match='arch or config'):
        convert_qna_vit(checkpoint, arch='tiny', config=config)


def test_configuration_files(tmp_path):
    path = tmp_path / 'official.json'
    path.write_text(json.dumps(RECORDED['config']))
    assert read_official_config(path) == RECORDED['config']
    for text, message in (('{', 'not a JSON file'), ('[1]', 'not a JSON object')):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=f'official.json: {message}'):
            read_official_config(path)


def test_tool_takes_a_configuration_and_prints_the_options(tmp_path, monkeypatch, run_tool):
    src, dst, config = (tmp_path / name for name in ('checkpoint_0', 'out.pth', 'official.json'))
    src.touch()
    checkpoint, settings = checkpoint_of('scale_avg')
    monkeypatch.setattr('mmvitattn.converters.read_flax_msgpack', lambda path: checkpoint)
    for arguments, message in (
        ((), '--config FILE.json'),
        (('--config', config), 'lacks qna_layers'),
        (('--config', tmp_path / 'nothing.json'), 'nothing.json'),
    ):
        config.write_text('{"base_dim": 8}')
        done = run_tool('qna_flax_to_mm', src, dst, *arguments, status=2)
        assert message in done.stderr and not dst.exists()
    config.write_text(json.dumps(settings))
    output = run_tool('qna_flax_to_mm', src, dst, '--config', config).stdout
    assert "'attention_scale': 'avg'" in output
    assert "neck = {'type': 'GlobalAveragePooling'}" in output
    meta = torch.load(dst, weights_only=True)['meta']
    assert meta['backbone']['attention_scale'] == 'avg'


def test_running_statistics_may_lie_in_the_model_state():
    checkpoint, config = checkpoint_of('resnet_stem')
    expected, _ = convert_qna_vit(checkpoint, config=config)
    checkpoint['model_state'] = {'batch_stats': checkpoint.pop('batch_stats')}
    state_dict, description = convert_qna_vit(checkpoint, config=config)
    assert description['dropped'] == ['opt_state', 'step']
    for name in ('running_mean', 'running_var'):
        name = f'backbone.stem.norm.{name}'
        assert torch.equal(state_dict[name], expected[name])
    del checkpoint['model_state']
    with pytest.raises(CheckpointError, match='batch_stats/StemBlock_0/BatchNorm_0/mean'):
        convert_qna_vit(checkpoint, config=config)


def test_training_options_come_from_the_configuration():
    checkpoint, config = checkpoint_of('all_at_once')
    _, description = convert_qna_vit(checkpoint, config=config)
    backbone = description['backbone']
    assert backbone['drop_path_rate'] == 0.3 and backbone['drop_path_downsample'] is False
    assert backbone['normalize_queries'] == (False, True, True, False)
    assert backbone['layer_scale'] == 0.5
    checkpoint, config = checkpoint_of('normalize_some')
    assert convert_qna_vit(checkpoint, config=config)[1]['backbone']['normalize_stop_grads'] is True


@pytest.mark.parametrize('case', ['absolute_pos', 'scale_ones', 'scale_normal_elementwise'])
def test_other_windows(case):
    """Tables over offsets of any form are resized; others are not changed."""
    checkpoint, _ = checkpoint_of(case)
    before, _ = convert_qna_vit(checkpoint)
    state_dict, description = convert_qna_vit(checkpoint, kernel_sizes=7)
    Classifier(description).load_state_dict(state_dict)
    resized = 0
    for name, old in before.items():
        if name.endswith(('position_bias_vectors', 'attention_scale')) and len(old) > 1:
            k = round(len(old) ** 0.5)
            maps = old.reshape(1, k, k, -1).permute(0, 3, 1, 2)
            options = dict(mode='bicubic', antialias=True)
            expected = nn.functional.interpolate(maps, (7, 7), **options)
            expected = expected.permute(0, 2, 3, 1).reshape(49, *old.shape[1:])
            torch.testing.assert_close(state_dict[name], expected)
            resized += 1
        elif old.shape == state_dict[name].shape:
            assert torch.equal(state_dict[name], old)
        else:
            assert case != 'absolute_pos' and name.endswith('attention.position_bias')
    layers = 7  # four blocks and three down-sampling blocks
    expected = dict(absolute_pos=2 * layers, scale_ones=layers, scale_normal_elementwise=0)
    assert resized == expected[case]


def test_maps_of_queries_are_no_tables():
    with pytest.raises(CheckpointError, match='kernel_sizes.*contextual_pos'):
        convert_qna_vit(checkpoint_of('contextual_pos')[0], kernel_sizes=5)


@torch.no_grad()
def test_classifier_of_mmpretrain(tmp_path):
    """The description as a config, the weights through MMEngine's loader."""
    from mmengine.registry import init_default_scope
    from mmengine.runner.checkpoint import load_checkpoint
    from mmpretrain.models import build_classifier

    checkpoint, config = checkpoint_of('all_at_once')
    state_dict, description = convert_qna_vit(checkpoint, config=config)
    torch.save(dict(state_dict=state_dict, meta=description), tmp_path / 'converted.pth')
    torch.load(tmp_path / 'converted.pth', weights_only=True)
    init_default_scope('mmpretrain')
    classifier = build_classifier(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmvitattn.QnAViT', out_indices=-1, **description['backbone']),
            neck=description['neck'],
            head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
        )
    )
    load_checkpoint(classifier, str(tmp_path / 'converted.pth'), strict=True)
    actual = classifier.eval()(image_of('all_at_once'), mode='tensor')
    expected = torch.from_numpy(np.load(DATA / 'recorded_options.npz')['all_at_once/logits'])
    assert (actual - expected).abs().max() / expected.abs().max() < 2e-6
