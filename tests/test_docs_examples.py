"""The example programs of the documentation."""

import os
import re
import subprocess
import sys

import cv2
import pytest
import torch
import torch.nn.functional as F

from mmvitattn import build_backbone
from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.layers import RPCPE


def run(arguments, folder, **env):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **env}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, f'{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
    return done.stdout


def losses_of_segmenter(root, folder, *arguments):
    printed = run([root / 'docs/examples/segment_shapes.py', *arguments], folder)
    return [float(loss) for loss in re.findall(r'loss (\d+\.\d+)', printed)]


@pytest.mark.slow
def test_segmenter_in_plain_pytorch_learns(root, tmp_path):
    losses = losses_of_segmenter(root, tmp_path)
    assert len(losses) == 100
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])


@pytest.mark.slow
@pytest.mark.parametrize('backbone', ['qna_vit_tiny', 'sag_small'])
def test_segmenter_in_plain_pytorch_takes_each_family(backbone, root, tmp_path):
    losses = losses_of_segmenter(root, tmp_path, backbone, '2')
    assert len(losses) == 2 and losses[0] != losses[1]


@pytest.mark.slow
def test_autoencoders_are_compared(root, tmp_path):
    printed = run([root / 'docs/examples/autoencoder.py', '--steps', '2', '--seeds', '1'], tmp_path)
    rows = re.findall(r'^\| (.+?) \| \d+ \| ([\d,]+) \| ([\d.]+) ', printed, re.MULTILINE)
    assert len(rows) == 4 and (tmp_path / 'autoencoder.png').stat().st_size > 10_000
    sizes = [int(size.replace(',', '')) for _, size, _ in rows]
    assert max(sizes) < 1.1 * min(sizes)


def own_labels(images):
    """Classes that the weights of the package predict."""
    weights = load_checkpoint('mmvitattn://linglo-b0_tiny-imagenet')['state_dict']
    backbone = build_backbone('linglo_b0', pretrained='tiny-imagenet', out_indices=-1).eval()
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.4, 57.1, 57.4))
    )
    with torch.no_grad():
        maps = backbone((images.float().permute(0, 3, 1, 2) - mean) / std)[0]
    head = (weights[f'head.fc.{name}'].float() for name in ('weight', 'bias'))
    return F.linear(maps.mean((2, 3)), *head).argmax(1).tolist()


@pytest.mark.slow
def test_uniform_saliency(root, tmp_path):
    """As trained, all pictures get the labels that the weights predict; without context, not."""
    torch.manual_seed(0)
    coarse = torch.rand(12, 3, 4, 4)
    images = (255 * F.interpolate(coarse, size=64, mode='bicubic')).clamp(0, 255)
    images = images.permute(0, 2, 3, 1).byte()  # RGB
    folder = tmp_path / 'data/val/images'
    folder.mkdir(parents=True)
    for i, image in enumerate(images.numpy()):
        cv2.imwrite(str(folder / f'{i}.png'), image[..., ::-1])
    labels = [f'{i}.png {label}' for i, label in enumerate(own_labels(images))]
    (tmp_path / 'data/val_labels.txt').write_text('\n'.join(labels))
    program = root / 'docs/examples/uniform_saliency.py'
    printed = run([program, '--data-root', tmp_path / 'data'], tmp_path)
    rows = re.findall(r'^\| (.+?) \| ([\d.]+) \| ([\d.]+) \|$', printed, re.MULTILINE)
    assert len(rows) == 7 and rows[0] == ('as trained', '100.00', '100.00')
    assert rows[-1][0] == 'no global context' and float(rows[-1][1]) < 100


def test_start_with_another_saliency(root, tmp_path):
    options = ['start.pth', '--saliency', '1', '--key', '3']
    run([root / 'docs/examples/saliency_start.py', *options], tmp_path)
    torch.manual_seed(0)
    plain = build_backbone('linglo_b0')
    changed = build_backbone('linglo_b0', pretrained=tmp_path / 'start.pth').state_dict()
    for name, value in plain.state_dict().items():
        factor = {'saliency': 50, 'key.weight': 3}.get(name.partition('.attention.')[2], 1)
        torch.testing.assert_close(changed[name], factor * value)


@pytest.mark.slow
def test_new_backbone_keeps_the_contract(root):
    """As docs/new_backbone.md says: the contract's tests, in a process that knows it."""
    contract = 'tests/test_models/test_contract.py'
    options = ['-q', '-p', 'no:cacheprovider', '-p', 'pool_net', '-k', 'pool_net']
    printed = run(
        ['-m', 'pytest', *options, contract], root, PYTHONPATH=str(root / 'docs/examples')
    )
    passed = re.search(r'(\d+) passed', printed)
    assert passed and int(passed.group(1)) >= 15 and 'skipped' not in printed


@pytest.mark.slow
def test_new_backbone_is_found_by_name(root, tmp_path):
    code = (
        'import importlib, pool_net\n'
        'from mmengine.registry import DefaultScope\n'
        "for scope in ('mmdet', 'mmseg', 'mmpretrain'):\n"
        '    DefaultScope.get_instance(scope, scope_name=scope)\n'
        "    models = importlib.import_module(f'{scope}.registry').MODELS\n"
        "    model = models.build(dict(type='mmvitattn.PoolNet', out_indices=(1, 3)))\n"
        '    print(model.feature_info.channels(), model.feature_info.reduction())\n'
    )
    printed = run(['-c', code], tmp_path, PYTHONPATH=str(root / 'docs/examples'))
    assert printed.splitlines()[-3:] == ['[64, 256] [8, 32]'] * 3


def test_rp_cpe_in_pvt(root):
    """The block of docs/linglo.md: a step changes every RP-CPE, and folding them nothing."""
    page = (root / 'docs/linglo.md').read_text()
    code = re.search(r'^```python\n(from mmdet.*?)^```$', page, re.MULTILINE | re.DOTALL)
    names = {}
    torch.manual_seed(0)
    exec(code[1], names)
    pvt, encodings = names['pvt'], [m for m in names['pvt'].modules() if isinstance(m, RPCPE)]
    pvt.init_weights()
    assert len(encodings) == 8
    before = [encoding.convs[0].weight.clone() for encoding in encodings]
    images = torch.rand(2, 3, 64, 64)
    optimizer = torch.optim.SGD(pvt.parameters(), lr=0.1)
    sum((y - torch.rand_like(y)).square().mean() for y in pvt(images)).backward()
    optimizer.step()
    for encoding, weight in zip(encodings, before, strict=True):
        assert not torch.equal(encoding.convs[0].weight, weight)
    pvt.eval()
    with torch.no_grad():
        expected = pvt(images)
        for encoding in encodings:
            encoding.switch_to_deploy()
        for found, wanted in zip(pvt(images), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in pvt.modules())


@pytest.mark.slow
def test_first_steps_can_be_recorded_again(root, tmp_path, small_shapes):
    """From a wheel, in an environment of its own, with the commands that the page shows."""
    photograph = small_shapes / 'coco/val2017/000000000001.jpg'
    page = tmp_path / 'first_steps.md'
    recorder = root / 'docs/make_first_steps.py'
    run([recorder, photograph, '--out', page, '--num-train', '16', '--epochs', '1'], tmp_path)

    def first_words(text):
        code = ''.join(re.findall(r'^```bash\n(.*?)^```$', text, re.MULTILINE | re.DOTALL))
        code = code.replace('[openmmlab,', '[onedl,')  # whichever stack records
        return [line.split()[:3] for line in code.splitlines() if not line.startswith(' ')]

    recorded, shown = page.read_text(), (root / 'docs/first_steps.md').read_text()
    assert first_words(recorded) == first_words(shown)
    for text in (recorded, shown):
        assert 'Successfully installed mmvitattn' in text and '1 of 1 files predicted' in text
        assert str(root) not in text and '/tmp/' not in text
