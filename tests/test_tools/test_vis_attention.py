"""Figures of attention show what the layers compute, at the right place."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import colors
from mmengine.structures import BaseDataElement

from mmvitattn.errors import UsageError
from mmvitattn.models import LinGlo, QnAViT, SAGViT
from mmvitattn.visualization import Scene, capture_attention, draw_attention
from mmvitattn.visualization.capture import Grid, grid_of
from mmvitattn.visualization.positions import default_positions, read_positions, to_network
from mmvitattn.visualization.shifts import shift_colours, shift_picture
from mmvitattn.visualization.windows import windows_at

from .conftest import TINY

TOOL = 'analysis_tools/vis_attention.py'
FAMILIES = dict(LinGlo=LinGlo, QnAViT=QnAViT, SAGViT=SAGViT)


def tiny(family):
    torch.manual_seed(0)
    return FAMILIES[family](TINY[family]).eval()


@pytest.mark.parametrize('size', [(64, 64), (66, 77)])
@pytest.mark.parametrize('family', FAMILIES)
def test_grids_match_the_receptive_fields(family, size):
    """A position's centre is the middle of the stem's receptive field, found by gradients."""
    model = tiny(family)
    image = torch.rand(1, *size, 3, requires_grad=True)
    y = model.stem(image)
    y = y[0] if y.dim() == 5 else y  # the unshifted variant
    row, column = 2, 3
    y[0, row, column].square().sum().backward()
    seen = image.grad[0].abs().sum(-1).nonzero()
    top, left = seen.min(0).values.tolist()
    bottom, right = (seen.max(0).values + 1).tolist()
    centre = grid_of(model, 1, size).centre(row, column)
    assert centre == ((left + right) / 2, (top + bottom) / 2)
    assert grid_of(model, 3, size).step == 16


def test_extent_and_nearest_position():
    grid = Grid(step=8, top=0.5, left=4)
    assert grid.extent(rows=2, columns=3) == (0, 24, 12.5, -3.5)
    assert grid.nearest(21, 6, rows=2, columns=3) == (1, 2)
    assert grid.nearest(-5, 99, rows=2, columns=3) == (1, 0)


@pytest.mark.parametrize(
    ('family', 'places'),
    [
        ('LinGlo', ['stage1_block1', 'stage2_block1', 'stage3_block1', 'stage4_block1']),
        (
            'QnAViT',
            [
                *('stage1_block1', 'stage2_downsampling', 'stage2_block1', 'stage3_downsampling'),
                *('stage3_block2', 'stage4_downsampling'),
            ],
        ),
        ('SAGViT', ['stage1_block1']),
    ],
)
def test_inputs_of_layers_are_captured(family, places):
    model, image = tiny(family), torch.rand(1, 3, 64, 96)
    captured = capture_attention(model, image)
    assert [layer.file_name for layer in captured] == places
    first = captured[0]
    expected = model.stem(image.permute(0, 2, 3, 1))
    if family == 'SAGViT':
        expected = model.stages[0].norm1(model.stages[0].position(expected))
    else:
        expected = model.stages[0][0].norm1(expected)
    torch.testing.assert_close(first.inputs, expected)
    assert first.title == 'stage 1, block 1'
    assert not any(module._forward_pre_hooks for module in model.modules())


def drawn_maps(figure):
    """Arrays drawn over the pictures, with their extents."""
    images = [image for ax in figure.axes for image in ax.get_images()]
    return [(np.asarray(image.get_array()), image.get_extent()) for image in images]


def test_saliency_is_drawn_head_by_head_at_its_place():
    model, image = tiny('LinGlo'), torch.rand(1, 3, 64, 96)
    torch.nn.init.normal_(model.stages[1][0].attention.saliency, std=5)
    scene = Scene(np.zeros((64, 90, 3), np.uint8), 'caption')  # 6 pixels are padding
    figures = dict(draw_attention(model, image, scene))
    assert list(figures) == ['saliency', *(f'saliency_stage{i}' for i in (1, 2, 3, 4))]
    assert 'caption' in figures['saliency'].get_suptitle()
    weights = capture_attention(model, image)[1].weights()[0]
    maps = [m for m in drawn_maps(figures['saliency_stage2']) if m[0].shape == (8, 12)]
    assert len(maps) == 2
    for (drawn, extent), expected in zip(maps, weights, strict=True):
        assert drawn.argmax() in expected.flatten().topk(3).indices  # the largest are clipped
        order = expected.flatten().argsort()
        assert (np.diff(drawn.flatten()[order]) >= 0).all()
        assert tuple(extent) == (-3.5, 92.5, 60.5, -3.5)
    titles = [ax.get_title() for ax in figures['saliency_stage2'].axes]
    assert titles[:3] == ['block 1', 'head 1', 'head 2']


def test_window_weights_are_those_of_the_chosen_positions():
    model, image = tiny('QnAViT'), torch.rand(1, 3, 64, 96)
    layers = capture_attention(model, image)
    windows = windows_at(layers[0], [(50.0, 23.0), (1.0, 1.0)])
    assert [window.centre for window in windows] == [(50, 22), (2, 2)]
    assert all((window.reach, window.step) == (6, 4) for window in windows)
    weights = layers[0].weights()[0]
    expected = torch.stack([weights[5, 12], weights[0, 0]])
    expected = (expected / expected.abs().amax((0, 1))).permute(0, 2, 1).unflatten(2, (3, 3))
    for window, weights in zip(windows, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(window.weights), weights)
    assert (windows[1].weights[:, 0] == 0).all()  # above the picture
    (down,) = windows_at(layers[1], [(50.0, 23.0)])  # read from stage 1, placed by stage 2
    assert (down.centre, down.reach, down.step) == ((50, 26), 6, 4)


def test_figures_of_learned_queries():
    scene = Scene(np.zeros((64, 96, 3), np.uint8), 'caption')
    figures = dict(
        draw_attention(tiny('QnAViT'), torch.rand(1, 3, 64, 96), scene, [(9, 9), (40, 40)])
    )
    assert list(figures)[:3] == ['windows', 'windows_stage1_block1', 'windows_stage2_downsampling']
    figure = figures['windows_stage2_block1']
    panels = [drawn for drawn, _ in drawn_maps(figure) if drawn.shape == (3, 3, 4)]
    assert len(panels) == 4 * 2  # heads x positions
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts[:4] == ['head 1', 'head 2', 'head 3', 'head 4'] and '2' in texts


def test_the_strongest_shift_gives_the_colour():
    """An attention that always takes one variant: every patch looks there."""
    model = tiny('SAGViT')
    attention, shifts = model.stages[0].blocks[0].attention, TINY['SAGViT']['shifts']
    scene = Scene(np.zeros((64, 64, 3), np.uint8), 'caption')
    variant = 2

    def always(x):
        weights = torch.zeros(len(shifts), *x.shape[1:4], 2)
        weights[variant] = 1
        return weights

    attention.attention_weights = always
    figures = dict(draw_attention(model, torch.rand(1, 3, 64, 64), scene))
    assert list(figures) == ['shifts', 'variants']
    figure = figures['shifts']
    fields = [drawn for drawn, _ in drawn_maps(figure) if drawn.shape == (16, 16, 3)]
    assert len(fields) == 2
    looks = -np.array(shifts)[:, ::-1]
    assert tuple(looks[variant]) == (-2, 0)  # shifted right by 2: it sees what lies left
    for field in fields:
        np.testing.assert_allclose(field, np.broadcast_to(shift_colours(looks)[2], field.shape))
    arrows = [c for ax in figure.axes for c in ax.collections if hasattr(c, 'U')]
    assert len(arrows) == 2 and (arrows[0].U == -2).all() and (arrows[0].V == 0).all()


@pytest.mark.parametrize('border', ['extend', 'roll', 'reflect'])
def test_variants_are_drawn_as_the_model_embeds_them(border):
    """The drawn pictures, through each variant's convolution, give the variants' embeddings."""
    arch = dict(TINY['SAGViT'], kernel_size=4, stride=4, padding=0)
    if border != 'reflect':
        arch['border'] = border
    model = SAGViT(arch, local='translation' if border == 'reflect' else 'shift').eval()
    picture = np.random.default_rng(0).random((21, 26, 3), np.float32)
    expected = model.stem(torch.from_numpy(picture)[None])
    weight, bias = model.stem.parameters()
    for i, shift in enumerate(model.stem.shifts):
        shifted = torch.from_numpy(shift_picture(picture, shift, border, stride=4))
        parameters = (weight, bias) if border == 'reflect' else (weight[i], bias[i])
        found = F.conv2d(shifted.permute(2, 0, 1)[None], *parameters, stride=4)
        torch.testing.assert_close(found.permute(0, 2, 3, 1), expected[i], atol=1e-5, rtol=1e-5)


def test_variants_show_the_patch_at_the_position():
    scene = Scene(np.zeros((64, 64, 3), np.uint8), 'caption')
    model, image = tiny('SAGViT'), torch.rand(1, 3, 64, 64)
    figure = dict(draw_attention(model, image, scene, [(57, 22)]))['variants']
    shifts = TINY['SAGViT']['shifts']
    panels = figure.axes[1 : 1 + len(shifts)]
    assert [panel.get_title() for panel in panels] == [str(tuple(shift)) for shift in shifts]
    for panel in panels:
        assert (*panel.get_xlim(), *panel.get_ylim()) == (40, 64, 32, 8)
        assert panel.patches[0].get_xy() == (56, 20) and panel.patches[0].get_width() == 4


@pytest.mark.parametrize('arch', ['small', 'cifar_tiny'])
def test_every_shift_has_a_colour_of_its_own(arch):
    shifts = np.array(SAGViT.arch_zoo[arch]['shifts'])
    found = {colors.to_hex(colour) for colour in shift_colours(-shifts[:, ::-1])}
    assert len(found) == len(shifts)


def test_positions():
    assert read_positions(['3,4', '10.5,0'], 11, 5) == [(3, 4), (10.5, 0)]
    with pytest.raises(UsageError, match='--positions 3;4: give X,Y in pixels'):
        read_positions(['3;4'], 11, 5)
    with pytest.raises(UsageError, match='--positions 11,0: outside the picture of 11 x 5'):
        read_positions(['11,0'], 11, 5)
    image = np.full((80, 60, 3), 90, np.uint8)
    assert default_positions(image) == [(30, 40)]
    cv2.rectangle(image, (20, 30), (40, 50), (250, 250, 250), -1)
    found = default_positions(image)
    corners = {(20, 30), (40, 30), (20, 50), (40, 50)}
    assert len(found) >= 2
    assert all(min(np.hypot(x - a, y - b) for a, b in corners) < 3 for x, y in found)


def test_positions_follow_the_pipeline():
    sample = BaseDataElement(metainfo=dict(ori_shape=(200, 400), scale_factor=(0.5, 0.5)))
    assert to_network((99.5, 19.5), sample, (100, 200)) == (50, 10)
    assert to_network((199.5, 19.5), sample, (100, 80)) == (40, 10)  # 60 cropped on each side
    with pytest.raises(UsageError, match='99,20: the test pipeline crops this position away'):
        to_network((99, 20), sample, (100, 80))


@pytest.mark.parametrize(
    ('task', 'family'),
    [
        ('detector', 'LinGlo'),
        pytest.param('segmenter', 'QnAViT', marks=pytest.mark.slow),
        ('classifier', 'SAGViT'),
    ],
)
def test_tool(task, family, run_tool, tiny_config, tiny_checkpoint, write_picture, tmp_path):
    """Each task and family; LinGlo from deploy weights, with a config that has them or not."""
    config = tiny_config(task, family, **(dict(deploy=True) if family == 'LinGlo' else {}))
    checkpoint, _ = tiny_checkpoint(config, deploy=family == 'LinGlo')
    picture, out = write_picture('picture.png', 64, 70), tmp_path / 'out'
    options = ('--device', 'cpu', '--positions', '20,30')
    done = run_tool(TOOL, picture, config, checkpoint, '--out-dir', out, *options)
    assert 'random' not in done.stdout
    drawn = {path.stem for path in out.iterdir()}
    expected = dict(LinGlo='saliency_stage4', QnAViT='windows_stage4_downsampling', SAGViT='shifts')
    assert expected[family] in drawn
    assert all(cv2.imread(str(path)).std() > 10 for path in out.iterdir())


def test_random_weights_are_called_so(run_tool, tiny_config, write_picture, tmp_path):
    config, picture = tiny_config('classifier', 'SAGViT'), write_picture('picture.png')
    done = run_tool(TOOL, picture, config, '--out-dir', tmp_path / 'out')
    assert 'the weights are random' in done.stdout
    done = run_tool(TOOL, picture, config, '--out-dir', tmp_path / 'out', status=2)
    assert 'exists and is not an empty folder' in done.stderr


def test_errors(run_tool, root, tiny_config, write_picture, tmp_path):
    picture, config = write_picture('picture.png'), tiny_config('classifier', 'SAGViT')
    (tmp_path / 'broken.png').write_bytes(b'broken')
    resnet = tmp_path / 'resnet.py'
    demo = root / 'configs/demo/linglo_b0_shapes.py'
    resnet.write_text(
        f'_base_ = {str(demo)!r}\n'
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18))\n"
    )
    segmenter, small = tiny_config('segmenter'), write_picture('small.png', 20, 20)
    for arguments, message in {
        (small, segmenter): 'small.png: LinGlo takes images of at least 32 x 32 pixels',
        (picture, 'gone.py'): 'there is no config gone.py',
        (tmp_path / 'gone.png', config): 'there is no picture',
        (tmp_path / 'broken.png', config): 'broken.png: not an image that can be read',
        (picture, resnet): 'its backbone is not LinGlo, QnA-ViT or SAG',
        (picture, config, 'gone.pth'): 'there is no checkpoint gone.pth',
        (picture, config, '--positions', '90,3'): 'outside the picture of 80 x 64',
        (picture, config, '--cfg-options', 'model.backbone.local=no'): "local='no' must be one of",
    }.items():
        done = run_tool(TOOL, *arguments, '--out-dir', tmp_path / 'out', status=2)
        assert message in done.stderr
    assert not (tmp_path / 'out').exists()
