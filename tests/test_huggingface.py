"""Folders of the Hugging Face Hub's format; nothing is sent or downloaded."""

import json

import pytest
import torch

from mmvitattn.errors import UsageError

pytest.importorskip('huggingface_hub', reason='extra [hf]')
HubBackbone = pytest.importorskip('mmvitattn.huggingface').HubBackbone
FILES = ['README.md', 'config.json', 'model.safetensors']


@pytest.fixture(scope='module')
def model():
    """With statistics and weights that differ from their start values."""
    torch.manual_seed(0)
    model = HubBackbone('linglo_b0', out_indices=(1, -1), in_channels=4, drop_path_rate=0.2)
    with torch.no_grad():
        model(torch.rand(2, 4, 40, 36))
        model.backbone.norms['3'].bias.fill_(0.5)
    return model.eval()


def test_round_trip_is_exact(model, tmp_path):
    model.save_pretrained(tmp_path / 'model')
    assert sorted(path.name for path in (tmp_path / 'model').iterdir()) == FILES
    config = json.loads((tmp_path / 'model/config.json').read_text())
    options = dict(in_channels=4, out_indices=[1, -1], drop_path_rate=0.2)
    assert config == dict(options, name='linglo_b0')
    twin = HubBackbone.from_pretrained(tmp_path / 'model').eval()
    assert twin.backbone.out_indices == (1, 3)
    expected = model.state_dict()
    assert twin.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in twin.state_dict().items())
    image = torch.rand(1, 4, 33, 64)
    assert all(torch.equal(a, e) for a, e in zip(twin(image), model(image), strict=True))


def test_deploy_form_and_checkpoint(model, tmp_path):
    """The checkpoint and ``init_cfg`` are not part of the config: the folder has the weights."""
    torch.save(model.backbone.state_dict(), tmp_path / 'file.pth')
    options = dict(out_indices=(1, -1), in_channels=4)
    folded = HubBackbone('linglo_b0', pretrained=tmp_path / 'file.pth', **options).eval()
    folded.backbone.switch_to_deploy()
    folded.save_pretrained(tmp_path / 'deploy')
    (tmp_path / 'file.pth').unlink()
    config = json.loads((tmp_path / 'deploy/config.json').read_text())
    assert config['deploy'] is True and not {'pretrained', 'init_cfg'} & set(config)
    twin = HubBackbone.from_pretrained(tmp_path / 'deploy').eval()
    image = torch.rand(1, 4, 33, 64)
    assert all(torch.equal(a, e) for a, e in zip(twin(image), folded(image), strict=True))


def test_model_card(model, tmp_path):
    stated = dict(data='Shapes', metric='AP 30.1', licence='mit', limits='Only shapes.')
    model.save_pretrained(tmp_path / 'a', model_card_kwargs=dict(stated, task='detection'))
    model.save_pretrained(tmp_path / 'b')
    card, plain = ((tmp_path / folder / 'README.md').read_text() for folder in 'ab')
    for text in (*stated.values(), 'detection', 'license: mit', '64, 256', '8, 32', 'linglo_b0'):
        assert text in card, text
    assert 'license: apache-2.0' in plain and plain.count('not stated') == 2
    assert 'library_name: mmvitattn' in plain and '{{' not in plain


def test_nothing_is_overwritten_and_nothing_may_be_missing(model, tmp_path):
    model.save_pretrained(tmp_path / 'model')
    with pytest.raises(UsageError, match=r'model.safetensors exists'):
        model.save_pretrained(tmp_path / 'model')
    other = HubBackbone('linglo_b0', out_indices=(1, 2, 3), in_channels=4)
    (tmp_path / 'model/config.json').write_text(json.dumps(other.config()))
    with pytest.raises(RuntimeError, match=r'norms\.2'):
        HubBackbone.from_pretrained(tmp_path / 'model')
