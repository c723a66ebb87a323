"""Libraries that take the backbones through timm, and torchvision's detectors: training steps."""

import importlib
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mmvitattn import build_backbone
from mmvitattn.layers.drop_path import DropPath

pytestmark = pytest.mark.slow
pytest.importorskip('timm', reason='extra [timm]')
pytest.importorskip('mmvitattn.timm')


def step(model, loss):
    """A step changes every parameter that is trained."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert [name for name, p in trained.items() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize('toolbox', ['mmpretrain', 'mmseg'])
def test_timm_backbone_of_the_toolboxes(toolbox):
    """As in configs: ``custom_imports`` imports ``mmvitattn.timm``."""
    importlib.import_module(f'{toolbox}.models')
    models = importlib.import_module(f'{toolbox}.registry').MODELS
    options = dict(features_only=True, pretrained=False, out_indices=(1, 2, 3))
    model = models.build(dict(type='TIMMBackbone', model_name='linglo_b0', **options))
    model.eval()  # mmpretrain's returns nothing
    backbone = build_backbone('linglo_b0', out_indices=(1, 2, 3)).eval()
    state = model.timm_model.state_dict()
    backbone.load_state_dict({n.removeprefix('model.backbone.'): v for n, v in state.items()})
    image = torch.rand(1, 3, 64, 70)
    assert all(torch.equal(a, e) for a, e in zip(model(image), backbone(image), strict=True))


@pytest.mark.parametrize('decoder', ['Unet', 'FPN'])
@pytest.mark.parametrize('backbone', ['linglo_b0', 'qna_vit_tiny'])
def test_segmentation_models_pytorch(decoder, backbone):
    smp = pytest.importorskip('segmentation_models_pytorch', reason='extra [interop]')
    options = dict(encoder_weights=None, in_channels=4, classes=5)
    model = getattr(smp, decoder)(f'tu-{backbone}', **options).train()
    for module in model.modules():
        if isinstance(module, DropPath):  # a dropped block gets no gradient
            module.p = 0.0
    image, target = torch.rand(2, 4, 64, 96), torch.randint(5, (2, 64, 96))
    logits = model(image)
    assert logits.shape == (2, 5, 64, 96)
    step(model, F.cross_entropy(logits, target))


@pytest.fixture
def transformers():
    library = pytest.importorskip('transformers', reason='extra [interop]')
    if not library.utils.is_torch_available():
        pytest.skip('this version of transformers needs a newer PyTorch')
    return library


def timm_config(library, **options):
    return library.TimmBackboneConfig(
        backbone='linglo_b0', use_pretrained_backbone=False, num_channels=3, **options
    )


def test_backbone_of_transformers(transformers):
    model = transformers.AutoBackbone.from_config(timm_config(transformers, out_indices=(1, 2, 3)))
    assert model.channels == [64, 160, 256]
    maps = model.eval()(torch.rand(1, 3, 64, 70)).feature_maps
    assert [tuple(y.shape[1:]) for y in maps] == [(64, 8, 9), (160, 4, 5), (256, 2, 3)]


def test_detr_of_transformers(transformers):
    """Its BatchNorms become frozen ones; evaluation folds them like others."""
    pytest.importorskip('scipy', reason='for the matching of DETR')
    sizes = dict(d_model=32, num_queries=6, encoder_layers=1, decoder_layers=1)
    sizes.update(encoder_ffn_dim=32, decoder_ffn_dim=32)
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=timm_config(transformers, out_indices=(3,)),
        num_labels=3,
        **dict(sizes, encoder_attention_heads=2, decoder_attention_heads=2),
    )
    torch.manual_seed(0)
    model = transformers.DetrForObjectDetection(config).train()
    image = torch.rand(2, 3, 96, 64)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.4, 0.2, 0.2]])
    labels = [dict(class_labels=torch.tensor([0, 2]), boxes=boxes)] * 2
    outputs = model(pixel_values=image, labels=labels)
    stem = next(p for name, p in model.named_parameters() if name.endswith('stem.0.conv.weight'))
    before = stem.detach().clone()
    outputs.loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert outputs.loss.isfinite() and not torch.equal(stem, before)
    with torch.no_grad():
        assert model.eval()(pixel_values=image).pred_boxes.shape == (2, 6, 4)


def test_retinanet_of_torchvision(root, tmp_path):
    """The example of docs/plain_pytorch.md, on fewer pictures' worth of steps."""
    command = [sys.executable, str(root / 'docs/examples/retinanet_shapes.py'), 'linglo_b0', '30']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r'loss (\d+\.\d+)', done.stdout)]
    assert len(losses) == 30 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert re.search(r'\d+ of \d+ objects are among the ten best boxes', done.stdout)
