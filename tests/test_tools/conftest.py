import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmvitattn.engine.build import build_model

TINY = {
    'LinGlo': dict(
        channels=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), ffn_ratios=(2,) * 4
    ),
    'QnAViT': dict(
        base_channels=8,
        qna_depths=(1, 1, 1, 0),
        qna_heads=(2, 4, 4, 4),
        kernel_sizes=(3,) * 4,
        lsa_depths=(0, 0, 1, 1),
        lsa_heads=(2, 2, 2, 2),
        window_sizes=(4,) * 4,
    ),
    'SAGViT': dict(
        channels=(8, 16, 24),
        depths=(1, 1, 1),
        num_heads=(2, 2, 2),
        shared_kv=False,
        kernel_size=4,
        stride=4,
        padding=0,
        shifts=((0, 0), (1, 0), (0, 2)),
        border='extend',
        image_size=64,
    ),
}
DEMOS = {
    'detector': (
        'retinanet_linglo_b0_fpn_shapes.py',
        (1, 2, 3),
        'neck=dict(in_channels={}), test_cfg=dict(score_thr=0.0)',
    ),
    'segmenter': ('semfpn_linglo_b0_shapes.py', (0, 1, 2, 3), 'neck=dict(in_channels={})'),
    'classifier': ('linglo_b0_shapes.py', -1, 'head=dict(in_channels={0[0]})'),
}


@pytest.fixture
def tiny_config(root, tmp_path):
    """Writes the config of a demo with a tiny backbone; returns the file."""

    def write(task='detector', family='LinGlo', **backbone):
        demo, out_indices, follows = DEMOS[task]
        arch = TINY[family]
        channels = arch.get('channels') or [8 * 2**i for i in range(4)]
        if family == 'SAGViT' and task == 'classifier':
            out_indices = -1
        chosen = [out_indices] if isinstance(out_indices, int) else out_indices
        backbone = dict(
            _delete_=True,
            type=f'mmvitattn.{family}',
            arch=arch,
            out_indices=out_indices,
            **backbone,
        )
        follows = follows.format([channels[i] for i in chosen])
        path = tmp_path / f'{task}_{family}.py'
        path.write_text(
            f'_base_ = {str(root / "configs" / "demo" / demo)!r}\n'
            f'model = dict(backbone={backbone!r}, {follows})\n'
        )
        return path

    return write


@pytest.fixture
def tiny_checkpoint(tmp_path):
    """Writes random weights of a config's model; returns the file and the model."""

    def write(config, name='weights.pth', meta=None, deploy=False):
        torch.manual_seed(0)
        model = build_model(Config.fromfile(config))
        if deploy:
            model.backbone.switch_to_deploy()
        torch.save(dict(state_dict=model.state_dict(), meta=meta or {}), tmp_path / name)
        return tmp_path / name, model

    return write


@pytest.fixture
def write_picture(tmp_path):
    """Writes a picture of a bright square; returns the file."""

    def write(path, height=64, width=80):
        image = np.full((height, width, 3), 60, np.uint8)
        image[height // 4 : height // 2, width // 4 : width // 2] = (40, 180, 220)
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)
        return path

    return write
