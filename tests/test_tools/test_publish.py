"""Checkpoints made ready to hand on: folded, stripped."""

import hashlib

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import TensorDataset

from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.inference.build import build_model, read_model_config

PUBLISH = 'model_converters/publish_model.py'
FOLD = 'model_converters/reparameterize_model.py'


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, mode='loss'):
        return dict(loss=self.linear(torch.stack(list(x))).square().mean())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A real training checkpoint with averaged weights; the file and both sets of weights."""
    folder = tmp_path_factory.mktemp('training')
    ema = EMAHook(momentum=0.5)
    torch.manual_seed(0)
    runner = Runner(
        Toy(),
        str(folder),
        train_dataloader=dict(
            dataset=TensorDataset(torch.randn(8, 3)),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1)),
        custom_hooks=[ema],
        default_scope='mmengine',
        experiment_name='toy_for_publishing',
        log_level='ERROR',
    )
    runner.train()
    average = {k: v.clone() for k, v in ema.ema_model.module.state_dict().items()}
    return folder / 'epoch_1.pth', average, runner.model.state_dict()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_published_file(suffix, trained, run_tool, tmp_path):
    src, average, last = trained
    assert not torch.equal(average['linear.weight'], last['linear.weight'])
    assert 'optimizer' in load_checkpoint(src)
    output = run_tool(PUBLISH, src, tmp_path / f'toy{suffix}').stdout
    assert 'the average (EMA)' in output
    assert 'dropped: ema_state_dict, message_hub, optimizer' in output
    (path,) = tmp_path.iterdir()
    assert f'SHA256: {hashlib.sha256(path.read_bytes()).hexdigest()}' in output
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'toy-{digest[:8]}{suffix}'
    published = load_checkpoint(path)
    assert set(published) == {'state_dict', 'meta'}
    assert set(published['state_dict']) == {'linear.weight', 'linear.bias'}
    for name, tensor in published['state_dict'].items():
        assert torch.equal(tensor, average[name])
    assert int(published['meta']['epoch']) == 1
    assert published['meta']['experiment_name'].startswith('toy_for_publishing')
    if suffix == '.pth':
        plain = torch.load(path, weights_only=True)
        assert plain['meta'] == published['meta']


def test_names_and_memory_are_plain(run_tool, tmp_path):
    """Of a bare state dict of a distributed run with views of one tensor."""
    both = torch.arange(6.0)
    weights = {'module.a': both[:2], 'module.b': both[2:], 'step': 3}
    torch.save(weights, tmp_path / 'src.pth')
    (tmp_path / 'out').mkdir()
    done = run_tool(PUBLISH, tmp_path / 'src.pth', tmp_path / 'out' / 'x.pth')
    assert 'dropped: nothing' in done.stdout
    (path,) = (tmp_path / 'out').iterdir()
    state = load_checkpoint(path)['state_dict']
    assert state['b'].tolist() == [2, 3, 4, 5] and state['a'].untyped_storage().nbytes() == 8


def test_half_precision_without_the_paths_of_the_machine(run_tool, tmp_path):
    weights = dict(weight=torch.randn(3, 3), count=torch.tensor(5), large=torch.tensor([65504.0]))
    cfg = (
        "epochs = 2\nload_from = '/home/me/a.pth'\nmodel = dict(\n    load_from=3)\nresume = True\n"
    )
    cfg += "work_dir = './work'\n"
    torch.save(dict(state_dict=weights, meta=dict(cfg=cfg, epoch=2)), tmp_path / 'src.pth')
    (tmp_path / 'out').mkdir()
    run_tool(PUBLISH, tmp_path / 'src.pth', tmp_path / 'out/x.safetensors', '--half')
    (path,) = (tmp_path / 'out').iterdir()
    published = load_checkpoint(path)
    for name, tensor in published['state_dict'].items():
        expected = weights[name].half() if name != 'count' else weights[name]
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)
    assert published['meta']['cfg'] == 'epochs = 2\nmodel = dict(\n    load_from=3)\n'
    torch.save(dict(state_dict=dict(a=torch.tensor([1e5]))), tmp_path / 'src.pth')
    done = run_tool(PUBLISH, tmp_path / 'src.pth', tmp_path / 'out/y.pth', '--half', status=2)
    assert 'values of a are too large for float16' in done.stderr
    assert list((tmp_path / 'out').iterdir()) == [path]


def test_publishing_refuses(run_tool, tmp_path):
    def refused(*arguments):
        return run_tool(PUBLISH, *arguments, status=2).stderr

    src = tmp_path / 'src.pth'
    torch.save({'state_dict': {'a': torch.ones(2)}}, src)
    assert '.pth or .safetensors' in refused(src, tmp_path / 'x.bin')
    assert 'no checkpoint' in refused(tmp_path / 'nothing.pth', tmp_path / 'x.pth')
    assert 'folder is missing' in refused(src, tmp_path / 'folder' / 'x.pth')
    run_tool(PUBLISH, src, tmp_path / 'x.pth')
    assert '--force' in refused(src, tmp_path / 'x.pth')
    run_tool(PUBLISH, src, tmp_path / 'x.pth', '--force')
    torch.save({'state_dict': {}, 'meta': {}}, tmp_path / 'empty.pth')
    assert 'contains no weights' in refused(tmp_path / 'empty.pth', tmp_path / 'y.pth')
    torch.save({'state_dict': {'a': torch.ones(2)}, 'hook': print}, tmp_path / 'other.pth')
    assert '--trust-checkpoint' in refused(tmp_path / 'other.pth', tmp_path / 'y.pth')
    torch.save({'state_dict': {'a': torch.ones(2), 'b': torch.tensor(float('nan'))}}, src)
    assert '1 of its weights contain NaN or infinite values' in refused(src, tmp_path / 'y.pth')
    assert len(list(tmp_path.iterdir())) == 4


def with_statistics(model):
    """Running statistics unlike their start values."""
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.1, 3)
    return model


@pytest.mark.parametrize('task', ['detector', 'segmenter', 'classifier'])
def test_folded_model(task, run_tool, tiny_config, tiny_checkpoint, tmp_path):
    config = tiny_config(task)
    src, model = tiny_checkpoint(config)
    with_statistics(model)
    meta = dict(dataset_meta=dict(classes=('a', 'b')), epoch=7)
    torch.save(dict(state_dict=model.state_dict(), meta=meta, optimizer={}), src)
    dst = tmp_path / 'deploy.pth'
    done = run_tool(FOLD, config, src, dst)
    assert 'parameters became' in done.stdout
    written = torch.load(dst, weights_only=True)
    assert set(written) == {'state_dict', 'meta'}
    assert written['meta'] == dict(dataset_meta=dict(classes=['a', 'b']), epoch=7, deploy=True)
    folded = build_model(read_model_config(config))
    folded.backbone.switch_to_deploy()
    folded.load_state_dict(written['state_dict'], strict=True)
    image = torch.randn(1, 3, 70, 41)
    with torch.no_grad():
        for actual, expected in zip(folded.backbone(image), model.backbone(image), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_folding_refuses(run_tool, tiny_config, tiny_checkpoint, tmp_path):
    def refused(*arguments):
        return run_tool(FOLD, *arguments, status=2).stderr

    config = tiny_config('classifier')
    src, model = tiny_checkpoint(config)
    dst = tmp_path / 'deploy.pth'
    dst.write_bytes(b'precious')
    assert '--force' in refused(config, src, dst)
    dst.unlink()
    assert 'no config' in refused(tmp_path / 'nothing.py', src, dst)
    assert 'no checkpoint' in refused(config, tmp_path / 'nothing.pth', dst)
    done, _ = tiny_checkpoint(config, 'done.pth', deploy=True)
    assert 'nothing can be folded' in refused(config, done, dst)
    other = tiny_config('classifier', 'QnAViT')
    qna, _ = tiny_checkpoint(other, 'qna.pth')
    assert 'QnAViT has only one form' in refused(other, qna, dst)
    assert 'does not fit' in refused(config, qna, dst)
    model.backbone.stages[0][0].ffn.position.norms[0].running_var.fill_(-1.0)
    torch.save(model.state_dict(), src)
    assert 'the outputs differ by nan' in refused(config, src, dst)
    assert not dst.exists()
