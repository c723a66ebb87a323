"""How much a trained LinGlo uses its saliency: top-1 after the weights of a stage are made uniform.

``python docs/examples/uniform_saliency.py [--data-root FOLDER] [--num-pictures N]`` evaluates the
weights that the package contains on Tiny-ImageNet: as they are, with saliency vectors of zeros in
one stage, with which key-only attention takes the plain mean of the keys, in all stages, and
without the path through the context (a gate of zeros).
"""

import argparse
import logging

import torch
from mmengine.runner import Runner

from mmvitattn.hub import get_config

NAME, WEIGHTS = 'linglo_b0_1xb128_tiny-imagenet', 'mmvitattn://linglo-b0_tiny-imagenet'


def main() -> None:
    """Evaluates each variant and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--data-root', default='data/tiny-imagenet-200')
    parser.add_argument('--num-pictures', type=int, help='evaluate fewer')
    args = parser.parse_args()
    cfg = get_config(NAME)
    cfg.test_dataloader.dataset.update(data_root=args.data_root)
    if args.num_pictures:
        cfg.test_dataloader.dataset.indices = args.num_pictures
    cfg.update(work_dir='work_dirs/uniform_saliency', log_level='ERROR')
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(WEIGHTS)
    logging.disable(logging.WARNING)
    backbone = runner.model.backbone
    trained = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    stages = range(len(backbone.stages))
    variants = {'as trained': (), **{f'uniform in stage {i + 1}': (i,) for i in stages}}
    print('| saliency | top-1 | top-5 |\n|---|---|---|')
    for title, chosen in {**variants, 'uniform in all stages': stages}.items():
        evaluate(runner, trained, title, [f'stages.{i}.' for i in chosen], 'saliency')
    evaluate(runner, trained, 'no global context', ['stages.'], 'gate.weight')


@torch.no_grad()
def evaluate(
    runner: Runner, trained: dict[str, torch.Tensor], title: str, parts: list[str], zeroed: str
) -> None:
    """Prints the accuracies with zeros for the parameters of some parts."""
    for name, weight in runner.model.backbone.state_dict().items():
        zero = name.startswith(tuple(parts)) and name.endswith(f'attention.{zeroed}')
        weight.copy_(torch.zeros_like(weight) if zero else trained[name])
    found = runner.test()
    print(f'| {title} | {found["accuracy/top1"]:.2f} | {found["accuracy/top5"]:.2f} |', flush=True)


if __name__ == '__main__':
    main()
