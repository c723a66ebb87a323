"""The backbones as models of timm."""

import pytest
import torch

from mmvitattn import build_backbone, list_backbones
from mmvitattn.zoo import families

timm = pytest.importorskip('timm', reason='extra [timm]')
registered = pytest.importorskip('mmvitattn.timm')
NAMES = [name for name in list_backbones() if name.startswith(('linglo', 'qna_vit', 'sag'))]


def test_all_names_are_registered():
    assert set(NAMES) <= set(timm.list_models())
    assert timm.list_models('linglo*') == ['linglo_b0', 'linglo_b1', 'linglo_b2']
    pretrained = {name for name in timm.list_models(pretrained=True) if name.split('.')[0] in NAMES}
    assert pretrained == {'linglo_b0.tiny_imagenet'}
    assert timm.is_model('sag_small') and callable(registered.sag_small)


@pytest.mark.parametrize('family', ['linglo', 'qna_vit', 'sag'])
def test_features_are_those_of_the_backbone(family):
    name = next(name for name in NAMES if name.startswith(family))
    options = dict(features_only=True, out_indices=(0, -1), in_chans=4)
    model = timm.create_model(name, **options).eval()
    backbone = build_backbone(name, out_indices=(0, -1), in_channels=4).eval()
    state = {n.removeprefix('model.backbone.'): v for n, v in model.state_dict().items()}
    backbone.load_state_dict(state, strict=True)
    assert model.feature_info.channels() == backbone.feature_info.channels()
    assert model.feature_info.reduction() == backbone.feature_info.reduction()
    image = torch.rand(1, 4, 64, 57)
    maps = model(image)
    assert all(torch.equal(a, e) for a, e in zip(maps, backbone(image), strict=True))
    sum(y.mean() for y in model.train()(image)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_features_of_a_number_of_stages():
    for out_indices, channels in ((None, [32, 64, 160, 256]), (2, [160, 256]), ((0, 1), [32, 64])):
        options = {} if out_indices is None else dict(out_indices=out_indices)
        model = timm.create_model('linglo_b0', features_only=True, **options)
        assert model.feature_info.channels() == channels
        assert len(model.model.backbone.norms) == len(channels)
    assert len(model.model.backbone.stages) == 2


@pytest.fixture(scope='module')
def classifier():
    torch.manual_seed(0)
    return timm.create_model('linglo_b0', num_classes=7, drop_path_rate=0.0).eval()


def test_classifier(classifier):
    image = torch.rand(2, 3, 64, 64)
    features = classifier.forward_features(image)
    assert features.shape == (2, 256, 2, 2)
    logits = classifier.get_classifier()(features.mean((2, 3)))
    torch.testing.assert_close(classifier(image), logits)
    assert 0.01 < classifier.head.fc.weight.std() < 0.03 and not classifier.head.fc.bias.any()
    last, maps = classifier.forward_intermediates(image, indices=[0, 3])
    assert torch.equal(last, features) and [y.shape[1] for y in maps] == [32, 256]
    only = classifier.forward_intermediates(
        image, indices=1, norm=True, output_fmt='NHWC', intermediates_only=True
    )
    assert torch.equal(only[0].permute(0, 3, 1, 2), features)
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        classifier.forward_intermediates(image, output_fmt='NLC')


def test_classifier_can_be_replaced():
    model = timm.create_model('sag_cifar_tiny', num_classes=0)
    image = torch.rand(1, 3, 32, 32)
    assert model(image).shape == (1, 192)
    model.reset_classifier(5)
    assert model(image).shape == (1, 5) and model.num_classes == 5
    model.reset_classifier(0, '')
    assert model(image).shape == (1, 192, 4, 4)
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert len(model.backbone.stages) == 2 and not len(model.backbone.norms)


def test_default_cfg_is_the_configs_data():
    cfg = timm.create_model('qna_vit_tiny').default_cfg
    assert (cfg['input_size'], cfg['interpolation']) == ((3, 224, 224), 'bicubic')
    assert (cfg['crop_pct'], cfg['pool_size'], cfg['num_classes']) == (224 / 256, (7, 7), 1000)
    assert cfg['mean'] == tuple(x / 255 for x in (123.675, 116.28, 103.53))
    cifar = timm.get_pretrained_cfg('sag_cifar_tiny')
    assert (cifar.input_size, cifar.num_classes, cifar.pool_size) == ((3, 32, 32), 10, (4, 4))
    assert cifar.std == pytest.approx([x / 255 for x in (63.0105, 62.0925, 66.708)])
    assert timm.get_pretrained_cfg('sag_tiny').pool_size == (4, 4)


@pytest.mark.parametrize('family', ['linglo', 'qna_vit', 'sag'])
def test_groups_and_weight_decay(family):
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    name = next(name for name in NAMES if name.startswith(family))
    model = timm.create_model(name, num_classes=3)
    names = dict(model.named_parameters())
    group, stage = model.group_matcher(), model.group_matcher(coarse=True)
    depths = {group(n) for n in names}
    assert depths == set(range(max(depths) + 1))
    assert group('head.fc.weight') == group('backbone.norms.3.bias') == max(depths)
    num_stages = len(model.feature_info)
    assert {stage(n) for n in names} == set(range(num_stages + 2))
    assert stage('backbone.downsamples.0.x') == stage('backbone.stages.1.0.x') == 2
    excluded = model.no_weight_decay()
    assert excluded and excluded <= set(names)
    ids = {id(names[n]) for n in excluded}
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=excluded)
    assert not ids & {id(p) for g in groups if g['weight_decay'] for p in g['params']}
    scales = {g['lr_scale'] for g in param_groups_layer_decay(model, layer_decay=0.5)}
    assert len(scales) == len(depths)


def test_grad_checkpointing(classifier):
    image = torch.rand(2, 3, 64, 64)
    expected = classifier(image)
    classifier.set_grad_checkpointing()
    assert classifier.backbone.with_cp
    assert torch.equal(classifier(image), expected)
    classifier.set_grad_checkpointing(False)


@pytest.mark.parametrize('form', ['classifier', 'backbone', 'deploy'])
def test_weights_from_a_file(form, classifier, tmp_path):
    """Parameters have the names of the classifiers that the configs train."""
    image, path = torch.rand(1, 3, 64, 64), tmp_path / 'file.pth'
    backbone = build_backbone('linglo_b0', out_indices=-1).eval()
    backbone.load_state_dict(classifier.backbone.state_dict())
    if form == 'deploy':
        backbone.switch_to_deploy()
    state = backbone.state_dict()
    if form == 'classifier':
        torch.save(dict(state_dict=classifier.state_dict()), path)
        read = timm.create_model('linglo_b0', num_classes=7, checkpoint_path=str(path)).eval()
        assert torch.equal(read(image), classifier(image))
        state = {**{f'backbone.{n}': v for n, v in state.items()}, 'head.fc.weight': 0}
    torch.save(state if form != 'classifier' else classifier.state_dict(), path)
    overlay = dict(file=str(path), num_classes=7)
    options = dict(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    (features,) = timm.create_model('linglo_b0', out_indices=(-1,), **options).eval()(image)
    torch.testing.assert_close(features, classifier.forward_features(image), rtol=1e-4, atol=1e-4)


def test_every_family_has_names():
    names = {f'{family}_{arch}' for family, cls in families().items() for arch in cls.arch_zoo}
    assert set(registered.ARCHS) <= names and set(NAMES) <= set(registered.ARCHS)
