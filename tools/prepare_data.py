"""Makes the embedded data set, checks a public one, or imports your own.

``python tools/prepare_data.py shapes`` writes the embedded data set.
``python tools/prepare_data.py coco|ade20k|imagenet|tiny-imagenet|cifar10 --root DIR`` checks files,
counts and annotations, and reports what is missing and where the official download is. Lists that
the configs need and the download lacks are added.
``python tools/prepare_data.py import --format voc|yolo|coco|masks|folders SOURCE --out DIR`` reads
what labelling tools write, and writes data and a config that trains on them.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
from pathlib import Path

from tqdm import tqdm

from mmvitattn.checkpoint import list_published
from mmvitattn.datasets.importing import FORMATS, Backbone, ImportOptions, import_data
from mmvitattn.datasets.layouts import LAYOUTS, Layout
from mmvitattn.errors import UsageError, usage_errors_exit


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='dataset', required=True, metavar='DATA')
    shapes = commands.add_parser('shapes', help='make the embedded data set')
    shapes.add_argument('--num-train', type=int, default=1200, help='training pictures')
    shapes.add_argument('--num-val', type=int, default=200, help='validation pictures')
    shapes.add_argument('--size', type=int, default=128, help='side of the pictures in pixels')
    shapes.add_argument('--seed', type=int, default=0)
    checked = [commands.add_parser(name, help=f'check {LAYOUTS[name].title}') for name in LAYOUTS]
    for command in (shapes, *checked):
        command.add_argument('--root', help='folder of the data set; default as in the configs')
    add_import_arguments(commands.add_parser('import', help='import your own data'))
    return parser.parse_args()


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``import``."""
    parser.add_argument('source', type=Path, help='folder, or the YAML or JSON file in it')
    parser.add_argument('--format', choices=FORMATS, required=True)
    parser.add_argument('--out', type=Path, required=True, help='folder to create, data/NAME')
    split = parser.add_mutually_exclusive_group()
    split.add_argument(
        '--split',
        type=float,
        metavar='SHARE',
        help="share of training pictures; default: the source's own splits, or 0.8 without them",
    )
    split.add_argument(
        '--lists',
        type=Path,
        nargs=2,
        metavar=('TRAIN', 'VAL'),
        help='text or CSV files that name the pictures for training and for validation',
    )
    parser.add_argument('--backbone', default='linglo_b0', help='see mmvitattn.list_backbones()')
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        help='for which the config is written; default: cuda if there is a GPU',
    )
    parser.add_argument('--classes', type=Path, help='masks: file of the class names, one a line')
    parser.add_argument(
        '--zero-ignored', action='store_true', help='masks: 0 means "no class", 1 the first class'
    )
    parser.add_argument('--strict', action='store_true', help='stop at flaws, write nothing')


def make_shapes(args: argparse.Namespace) -> None:
    """Writes the embedded data set, with a progress bar."""
    from mmvitattn.datasets.shapes import write_shapes

    root = args.root or 'data/shapes'
    with tqdm(desc=f'writing {root}', unit='picture') as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_shapes(root, args.num_train, args.num_val, args.size, args.seed, show)
    print(f'{root} is ready: coco/, ade/ and imagenet/ below it')


def check(layout: Layout, root: Path) -> None:
    """Prints a summary of the folder, or raises an error that lists the problems."""
    if layout.prepare and root.is_dir():
        layout.prepare(root)
    problems = list(layout.find_problems(root)) if root.is_dir() else [f'{root} is not a folder']
    if problems:
        lines = [f'{layout.title} in {root} is not in order:', *(f'  {p}' for p in problems)]
        raise UsageError('\n'.join([*lines, layout.describe(root)]))
    print(f'{layout.title} in {root} is in order\n  {layout.summarize(root)}')


def import_own(args: argparse.Namespace) -> None:
    """Imports data, with a progress bar for each step, and prints what was found."""
    import torch

    options = ImportOptions(
        args.format,
        args.split,
        args.lists,
        args.classes,
        args.zero_ignored,
        args.strict,
        args.device or ('cuda' if torch.cuda.is_available() else 'cpu'),
    )
    bars: dict[str, tqdm] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in bars:
            bars[step] = tqdm(desc=step, total=total, unit='picture')
        bars[step].update(done - bars[step].n)
        if done == total:
            bars[step].close()

    configs = str(Path(__file__).resolve().parents[1] / 'configs')
    backbone = describe_backbone(args.backbone)
    print('\n'.join(import_data(args.source, args.out, options, backbone, configs, show)))


def describe_backbone(name: str) -> Backbone:
    """What a config needs to know about a backbone."""
    import mmvitattn

    backbone = mmvitattn.build_backbone(name)
    kind, info = type(backbone), backbone.feature_info
    arch = max((arch for arch in kind.arch_zoo if name.endswith(f'_{arch}')), key=len)
    kind_name = f'mmvitattn.{kind.__name__}'
    weights = next(iter(list_published(name)), None)
    return Backbone(kind_name, arch, tuple(info.channels()), tuple(info.reduction()), weights)


def main() -> None:
    """Makes, checks or imports the data set that the command line names."""
    args = parse_args()
    with usage_errors_exit(ValueError, FileExistsError):
        if args.dataset == 'shapes':
            make_shapes(args)
        elif args.dataset == 'import':
            import_own(args)
        else:
            layout = LAYOUTS[args.dataset]
            check(layout, Path(args.root or layout.root))


if __name__ == '__main__':
    main()
