import re

from mmvitattn.models import LinGlo


def test_one_config(run_tool):
    tool, config = 'get_flops', 'configs/linglo_b0_8xb128_in1k.py'
    lines = run_tool(tool, config, '--deploy', '--shape', 448, 448).stdout.splitlines()[-3:]
    whole, backbone, flops = (float(re.search(r'(\d+\.\d+) [MG]', line).group(1)) for line in lines)
    model = LinGlo('b0', out_indices=-1, deploy=True)
    parameters = sum(p.numel() for p in model.parameters())
    assert backbone == round(parameters / 1e6, 2)
    assert whole == round((parameters + 256 * 1000 + 1000) / 1e6, 2)
    assert 4 * 0.66 < flops < 4 * 0.68  # linear in pixels: four times 0.67 G


def test_unknown_config(run_tool):
    done = run_tool('get_flops', 'configs/nothing.py', status=2)
    assert 'there is no config' in done.stderr


def test_image_too_small(run_tool):
    config = 'configs/linglo_b0_8xb128_in1k.py'
    done = run_tool('get_flops', config, '--shape', 10, 10, status=2)
    assert 'error: LinGlo takes images of at least 32 x 32 pixels, got 10 x 10' in done.stderr
