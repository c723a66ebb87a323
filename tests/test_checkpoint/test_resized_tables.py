"""Position tables are resized when weights are loaded, on every way into a model."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import load_checkpoint

from mmvitattn import build_backbone
from mmvitattn.checkpoint import load_backbone_weights, load_model_weights
from mmvitattn.converters.qna_vit_rules import resize_table as resize_offsets
from mmvitattn.errors import CheckpointError
from mmvitattn.layers.position_table import resize_table
from mmvitattn.models import LinGlo, QnAViT, SAGViT

QNA = dict(
    base_channels=8,
    qna_depths=(2, 0),
    qna_heads=(2, 2),
    kernel_sizes=(3, 3),
    lsa_depths=(0, 2),
    lsa_heads=(1, 4),
    window_sizes=(7, 4),
)
SAG = dict(
    channels=(8, 16),
    depths=(2, 1),
    num_heads=(1, 2),
    shared_kv=False,
    kernel_size=4,
    stride=4,
    padding=0,
    shifts=((0, 0), (1, 0), (0, 1)),
    border='extend',
    image_size=64,
)
LARGER = {QnAViT: dict(QNA, kernel_sizes=(5, 3), window_sizes=(7, 6)), SAGViT: dict(SAG)}
LARGER[SAGViT].update(image_size=(96, 80))


@pytest.fixture
def lines(monkeypatch):
    """What is logged about resizing."""
    logged = []
    monkeypatch.setattr('mmvitattn.models.base.print_log', lambda line, _: logged.append(line))
    return logged


def backbone(family, seed, larger=False, **options):
    torch.manual_seed(seed)
    arch = {QnAViT: QNA, SAGViT: SAG}[family]
    built = family(LARGER[family] if larger else arch, **options)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)  # tables of zeros would prove nothing
    return built


class Model(BaseModel):
    def __init__(self, family, seed, larger=False):
        super().__init__()
        self.backbone, self.head = backbone(family, seed, larger), torch.nn.Linear(4, 2)

    forward = None


def expected(old, new):
    """The old weights in the new model's form: tables resized as the converter does."""
    changed, state = set(), {}
    for name, table in old.items():
        shape = new[name].shape
        state[name] = table
        if table.shape != shape:
            changed.add(name)
            if name.endswith('.table'):
                state[name] = resize_table(table, shape[-3:-1])
            else:
                state[name] = resize_offsets(table.flatten(1), round(len(new[name]) ** 0.5))
            state[name] = state[name].reshape(shape)
    return state, changed


def by_load_state_dict(old, new, path):
    new.load_state_dict(old.state_dict())


def by_mmengine(old, new, path):
    """As ``load_from``, and so ``tools/test.py``."""
    torch.save(dict(state_dict=old.state_dict()), path)
    load_checkpoint(new, str(path), strict=True)


def by_our_loader(old, new, path):
    load_model_weights(new, old.state_dict(), 'file.pth')


def by_init_cfg(old, new, path):
    torch.save(dict(state_dict=old.state_dict()), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    new.backbone.init_cfg, new.backbone._is_init = init_cfg, False
    new.backbone.init_weights()


def of_the_backbone(old, new, path):
    load_backbone_weights(new.backbone, dict(state_dict=old.state_dict()), 'file.pth')


WAYS = [by_load_state_dict, by_mmengine, by_our_loader, by_init_cfg, of_the_backbone]


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('family', [QnAViT, SAGViT])
def test_tables_are_resized_on_every_way(family, way, lines, tmp_path):
    old, new = Model(family, 0), Model(family, 1, larger=True)
    untouched = {name: weight.clone() for name, weight in old.state_dict().items()}
    state, changed = expected(old.backbone.state_dict(), new.backbone.state_dict())
    assert len(changed) == {QnAViT: 8, SAGViT: 2}[family]
    way(old, new, tmp_path / 'file.pth')
    for name, weight in new.backbone.state_dict().items():
        assert torch.equal(weight, state[name]), name
    for name, weight in old.state_dict().items():
        assert torch.equal(weight, untouched[name]), name
    assert len(lines) == 1
    named = {
        QnAViT: 'stages.0.*.attention.position_bias 9 x 2 x 2 -> 25 x 2 x 2',
        SAGViT: 'stages.0.position.table 3 x 16 x 16 x 8 -> 3 x 24 x 20 x 8',
    }
    assert named[family] in lines[0]


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('family', [QnAViT, SAGViT])
def test_equal_sizes_stay_bit_for_bit(family, way, lines, tmp_path):
    old, new = Model(family, 0), Model(family, 1)
    way(old, new, tmp_path / 'file.pth')
    for name, weight in new.backbone.state_dict().items():
        assert torch.equal(weight, old.backbone.state_dict()[name]), name
    assert not lines


def test_build_backbone_resizes(lines, tmp_path):
    torch.save(build_backbone('qna_vit_tiny').state_dict(), tmp_path / 'file.pth')
    build_backbone('qna_vit_tiny', pretrained=tmp_path / 'file.pth', window_sizes=(7, 7, 14, 12))
    assert lines == [
        'position tables resized to fit this model: '
        'stages.3.*.attention.position_bias 169 x 16 -> 529 x 16'
    ]


def test_absolute_positions_of_linglo_are_resized(lines):
    arch = dict(channels=(8, 16), depths=(1, 1), num_heads=(1, 2), ffn_ratios=(2, 2))
    old, new = (LinGlo(arch, position='absolute', image_size=size) for size in (32, 64))
    new.load_state_dict(old.state_dict())
    table = resize_table(old.stem.position.table, new.stem.position.table.shape[:2])
    assert torch.equal(new.stem.position.table, table) and len(lines) == 1


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('stages.0.0.attention.position_bias', (25, 4, 1)),  # other queries and heads
        ('stages.0.0.attention.position_bias', (24, 2, 2)),  # not a square
        ('stages.0.0.attention.position_bias', (16, 2, 2)),  # of even side
        ('stages.0.0.attention.attention_scale', (1, 2, 2)),  # one factor for all offsets
        ('stages.0.0.attention.attention_scale', (25,)),
        ('stages.0.0.attention.position_bias', (1,)),
        ('stages.1.0.attention.position_bias', (25, 3)),
        ('stages.0.0.attention.query', (4, 8)),
    ],
)
def test_what_is_no_resize_is_refused(name, shape, lines):
    state = backbone(QnAViT, 0).state_dict()
    state[name] = torch.zeros(shape)
    message = rf'file\.pth does not fit .* {name} \({shape[0]},'
    with pytest.raises(CheckpointError, match=message):
        load_backbone_weights(backbone(QnAViT, 1), state, 'file.pth')
    with pytest.raises(RuntimeError, match=f'size mismatch for {name}'):
        backbone(QnAViT, 1).load_state_dict(state)
    assert not lines


@pytest.mark.parametrize('shape', [(4, 16, 16, 8), (16, 16, 8), (3, 16, 16, 4), (8,)])
def test_position_tables_of_other_variants_are_refused(shape, lines):
    state = backbone(SAGViT, 0).state_dict()
    state['stages.0.position.table'] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match='position.table'):
        load_backbone_weights(backbone(SAGViT, 1), state, 'file.pth')
    assert not lines


def test_one_factor_for_all_offsets_stays(lines):
    options = dict(attention_scale='normal_elementwise')
    old, new = backbone(QnAViT, 0, **options), backbone(QnAViT, 1, larger=True, **options)
    new.load_state_dict(old.state_dict())
    name = 'stages.0.0.attention.attention_scale'
    assert torch.equal(new.state_dict()[name], old.state_dict()[name])
    assert 'attention_scale' not in lines[0]
