import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvitattn.layers import GlobalAttention, LocalShiftAttention
from mmvitattn.layers.drop_path import DropPath
from mmvitattn.models import SAGViT
from mmvitattn.ops import force

MINI = dict(
    channels=(8, 12, 16),
    depths=(3, 1, 2),
    num_heads=(2, 3, 4),
    shared_kv=False,
    kernel_size=4,
    stride=4,
    padding=0,
    shifts=((0, 0), (0, 1), (2, 0)),
    border='extend',
    image_size=(32, 48),
    drop_path_rate=0.0,
)
ROLLED = dict(MINI, kernel_size=3, stride=1, padding=1, border='roll', shared_kv=True)


def mini(arch=MINI, **options):
    torch.manual_seed(0)
    return SAGViT(arch, **options)


@pytest.mark.parametrize(
    ('arch', 'num_classes', 'parameters'),
    [
        ('tiny', 1000, 9_909_928),
        ('small', 1000, 22_145_320),
        ('cifar_tiny', 10, 10_228_298),
        ('cifar_small', 10, 36_216_970),
        ('cifar_base', 10, 115_772_170),
    ],
)
def test_parameter_counts_are_the_published_models(arch, num_classes, parameters, monkeypatch):
    monkeypatch.setattr(nn.init, 'trunc_normal_', lambda tensor, *args, **kwargs: tensor)
    with torch.device('meta'):
        model = SAGViT(arch, out_indices=-1)
        head = nn.Linear(model.feature_info.channels()[-1], num_classes)
    assert sum(p.numel() for m in (model, head) for p in m.parameters()) == parameters


@pytest.mark.parametrize(
    ('arch', 'strides', 'least'),
    [('tiny', [7, 14, 28, 56], 32), ('small', [4, 8, 16], 16), ('cifar_tiny', [1, 2, 4, 8], 8)],
)
def test_strides_and_least_size(arch, strides, least):
    with torch.device('meta'):
        model = SAGViT(arch)
    assert model.feature_info.reduction() == strides and model.min_size == least


@torch.no_grad()
@pytest.mark.parametrize('setting', ['', 'reference'])
def test_model_follows_the_paper(setting):
    """Stage by stage: variants, positions, the local layer first, norms shared by a stage."""
    model, image = mini().eval(), torch.randn(2, 3, 32, 48)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    with force(setting):
        outputs = model(image)
    x = model.stem(image.permute(0, 2, 3, 1))
    for i, stage in enumerate(model.stages):
        if i == 0:
            x = x + stage.position.table[:, None]
        else:
            down = model.downsamples[i - 1]
            x = down.norm(
                F.conv2d(x.permute(0, 3, 1, 2), *down.embed.conv.parameters(), padding=1).permute(
                    0, 2, 3, 1
                )
            )
            x = F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
            x = x + stage.position.table
        for j, block in enumerate(stage.blocks):
            y = block.attention(stage.norm1(x))
            x = (x[0] if i == j == 0 else x) + y
            x = x + block.ffn.fc2(F.gelu(block.ffn.fc1(stage.norm2(x))))
        expected = model.norms[str(i)](x).permute(0, 3, 1, 2)
        torch.testing.assert_close(outputs[i], expected, rtol=1e-4, atol=1e-5)


def test_kinds_of_attention():
    model = SAGViT('cifar_tiny', kv_pools=(4, 2, 1, 1))
    kinds = [[type(block.attention) for block in stage.blocks] for stage in model.stages]
    assert kinds == [[LocalShiftAttention, GlobalAttention]] + [[GlobalAttention] * 4] * 3
    attentions = [block.attention for stage in model.stages for block in stage.blocks]
    assert {a.num_heads for a in attentions} == {3} and all(a.shared_kv for a in attentions)
    assert [a.kv_pool for a in attentions[1:]] == [4] + [2] * 4 + [1] * 8
    with torch.device('meta'):
        small = SAGViT('small')
    attentions = [stage.blocks[-1].attention for stage in small.stages]
    assert [a.num_heads for a in attentions] == [2, 6, 12]
    assert not any(a.shared_kv or a.kv_pool > 1 for a in attentions)
    with pytest.raises(ValueError, match='kv_pools'):
        mini(kv_pools=(2, 1))


def test_norms_and_positions_are_stored_once():
    names = list(mini().state_dict())
    norms = [name for name in names if 'norm' in name and 'weight' in name]
    assert norms == [
        *(f'stages.{i}.norm{k}.weight' for i in range(3) for k in (1, 2)),
        *(f'downsamples.{i}.norm.weight' for i in range(2)),
        *(f'norms.{i}.weight' for i in range(3)),
    ]
    shapes = {n: tuple(t.shape) for n, t in mini().state_dict().items() if 'position' in n}
    assert shapes == {
        'stages.0.position.table': (3, 8, 12, 8),
        'stages.1.position.table': (4, 6, 12),
        'stages.2.position.table': (2, 3, 16),
    }


def test_positions_are_resized_for_other_sizes_alone(monkeypatch):
    model = mini().eval()
    model(torch.randn(1, 3, 48, 32))
    monkeypatch.setattr(F, 'interpolate', None)
    model(torch.randn(1, 3, 32, 48))
    with pytest.raises(TypeError):
        model(torch.randn(1, 3, 48, 32))


def test_drop_path_is_the_same_in_every_block():
    rates = {m.p for m in SAGViT('cifar_tiny').modules() if isinstance(m, DropPath)}
    assert rates == {0.1}
    model = mini(drop_path_rate=1.0).train()
    with torch.no_grad():  # every branch is dropped: the unshifted embedding goes on
        image = torch.randn(1, 3, 32, 48)
        embedding = model.stem(image.permute(0, 2, 3, 1)) + model.stages[0].position.table[:, None]
        expected = model.norms['0'](embedding[0]).permute(0, 3, 1, 2)
        torch.testing.assert_close(model(image)[0], expected)


def test_start_values():
    model = SAGViT(dict(MINI, channels=(32, 48, 64)))
    weights = [p for n, p in model.named_parameters() if 'norm' not in n and 'bias' not in n]
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.02, rel=0.15), weight.shape
    assert all((p == 0).all() for n, p in model.named_parameters() if n.endswith('bias'))
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert {m.approximate for m in model.modules() if isinstance(m, nn.GELU)} == {'none'}


def test_layer_depths():
    model = mini()
    depths = {
        name: model.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in model.named_parameters()
    }
    assert {total for _, total in depths.values()} == {1 + 6 + 1}
    expected = {
        'stem.weight': 0,
        'stages.0.position.table': 1,
        'stages.0.norm1.weight': 1,
        'stages.0.blocks.2.attention.query.bias': 3,
        'downsamples.0.embed.conv.weight': 4,
        'stages.1.blocks.0.ffn.fc1.weight': 4,
        'stages.2.norm2.bias': 5,
        'stages.2.blocks.1.ffn.fc2.weight': 6,
        'norms.0.weight': 7,
    }
    assert {name: depths[name][0] for name in expected} == expected
    assert model.get_layer_depth('neck.convs.0.weight', 'backbone.') == (7, 8)


def test_rolled_and_pooled_form_compiles_with_its_gradient():
    model, image = mini(ROLLED, kv_pools=(2, 1, 1)).train(), torch.randn(1, 3, 13, 9)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    parameters = list(model.parameters())
    actual, expected = compiled(image), model(image)
    torch.testing.assert_close(actual, expected)
    directions = [torch.randn_like(y) for y in expected]
    torch.testing.assert_close(
        torch.autograd.grad(actual, parameters, directions),
        torch.autograd.grad(expected, parameters, directions),
        rtol=1e-4,
        atol=1e-4,
    )
    torch._dynamo.reset()


def test_shifts_that_the_border_cannot_do_are_named():
    with pytest.raises(ValueError, match="use 'roll'"):
        SAGViT(dict(MINI, shifts=[[0, 0], [0, -1]]))
