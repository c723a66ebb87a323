"""Makes the embedded data set, or checks a public one.

``python tools/prepare_data.py shapes`` writes the embedded data set.
``python tools/prepare_data.py coco|ade20k|imagenet|tiny-imagenet|cifar10 --root DIR`` checks files,
counts and annotations, and reports what is missing and where the official download is. Lists that
the configs need and the download lacks are added.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
from pathlib import Path

from tqdm import tqdm

from mmvitattn.datasets.layouts import LAYOUTS, Layout
from mmvitattn.errors import UsageError, usage_errors_exit


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('dataset', choices=['shapes', *LAYOUTS])
    parser.add_argument('--root', help='folder of the data set; default as in the configs')
    shapes = parser.add_argument_group('shapes')
    shapes.add_argument('--num-train', type=int, default=1200, help='training pictures')
    shapes.add_argument('--num-val', type=int, default=200, help='validation pictures')
    shapes.add_argument('--size', type=int, default=128, help='side of the pictures in pixels')
    shapes.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


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


def main() -> None:
    """Makes or checks the data set that the command line names."""
    args = parse_args()
    with usage_errors_exit(ValueError, FileExistsError):
        if args.dataset == 'shapes':
            make_shapes(args)
        else:
            layout = LAYOUTS[args.dataset]
            check(layout, Path(args.root or layout.root))


if __name__ == '__main__':
    main()
