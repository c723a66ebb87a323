"""Up-sampling layers compared in an autoencoder, in plain PyTorch.

Usage: ``python autoencoder.py [--steps 300] [--seeds 3] [--out autoencoder.png]``; it makes its own
data. Encoder, bottleneck and training are the same for all; only the layers that double the map
differ, and the width of each decoder is chosen so that all have the same number of parameters.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.io import read_image
from torchvision.utils import make_grid, save_image

from mmvitattn.datasets.shapes import write_shapes
from mmvitattn.models import QnAUpsample2d

PARAMETERS = 200_000  # of each decoder
WIDTHS = range(8, 257, 8)  # of the maps in a decoder
LATENT = 32  # channels of the bottleneck, a sixteenth of the picture's side
DOUBLINGS = 4


def interpolate(mode: str, width: int) -> nn.Module:
    """Interpolation, then a 3 x 3 convolution."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(width, width, 3, padding=1)
    )


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    'QnA': lambda width: QnAUpsample2d(width, width, num_heads=width // 8),
    'bilinear + 3 x 3': partial(interpolate, 'bilinear'),
    'nearest + 3 x 3': partial(interpolate, 'nearest'),
    'transposed 4 x 4': lambda width: nn.ConvTranspose2d(width, width, 4, 2, 1),
}


def encoder() -> nn.Module:
    """Four strided convolutions, (B, 3, H, W) to (B, LATENT, H / 16, W / 16)."""
    layers, channels = [], 3
    for width in (32, 64, 96, 128):
        layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(8, width), nn.GELU()]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, LATENT, 1))


def decoder(layer: Callable[[int], nn.Module], width: int) -> nn.Module:
    """Back to the picture, by four layers that double the map."""
    layers: list[nn.Module] = [nn.Conv2d(LATENT, width, 1)]
    for _ in range(DOUBLINGS):
        layers += [layer(width), nn.GroupNorm(4, width), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def fitting_width(layer: Callable[[int], nn.Module]) -> int:
    """The width at which a decoder has PARAMETERS parameters, as nearly as it can."""
    return min(WIDTHS, key=lambda width: abs(size(decoder(layer, width)) - PARAMETERS))


def load(folder: Path) -> Tensor:
    """Pictures of a folder, (N, 3, 64, 64) in [-1, 1]."""
    images = torch.stack([read_image(str(path)) for path in sorted(folder.glob('*.jpg'))])
    return nn.functional.avg_pool2d(images / 127.5 - 1, 2)


def train(name: str, seed: int, pictures: Tensor, steps: int) -> nn.Module:
    """Trains an autoencoder on the mean squared error; Adam, one-cycle schedule."""
    torch.manual_seed(seed)
    model = nn.Sequential(encoder(), decoder(LAYERS[name], fitting_width(LAYERS[name])))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    order = torch.Generator().manual_seed(seed)  # the same batches for all
    for _ in range(steps):
        batch = pictures[torch.randint(len(pictures), (16,), generator=order)]
        loss = (model(batch) - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    """Trains every layer with every seed, prints the table and draws reconstructions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--out', default='autoencoder.png')
    args = parser.parse_args()
    data = write_shapes('data/autoencoder', num_train=600, num_val=100) / 'coco'
    pictures, unseen = load(data / 'train2017'), load(data / 'val2017')
    rows = [unseen[:8]]
    print('| up-sampling | width | decoder parameters | mean squared error x 1000 | each seed |')
    print('|---|---|---|---|---|')
    for name, layer in LAYERS.items():
        errors = []
        for seed in range(args.seeds):
            model = train(name, seed, pictures, args.steps)
            with torch.no_grad():
                errors.append(1000 * (model(unseen) - unseen).square().mean().item())
        with torch.no_grad():
            rows.append(model(unseen[:8]))
        width = fitting_width(layer)
        each = ', '.join(f'{error:.2f}' for error in errors)
        mean = statistics.mean(errors)
        print(
            f'| {name} | {width} | {size(decoder(layer, width)):,} | {mean:.2f} | {each} |',
            flush=True,
        )
    save_image(make_grid(torch.cat(rows).clamp(-1, 1) / 2 + 0.5, nrow=8, pad_value=1), args.out)
    print(f'{args.out}: the pictures, then the reconstructions in the order of the table')


if __name__ == '__main__':
    main()
