"""Backbones as folders or repositories in the format of the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

try:
    from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'mmvitattn.huggingface needs {error.name}: pip install "mmvitattn[hf]"', name=error.name
    ) from None

from .errors import UsageError
from .zoo import build_backbone

CARD = """---
{{ card_data }}
---

# {{ name }}

Backbone `{{ name }}` of [mmvitattn](https://github.com/mmvitattn/mmvitattn), with
{{ parameters }} M parameters. Its maps have {{ channels }} channels at strides {{ strides }}.

| | |
|---|---|
| task | {{ task }} |
| training data | {{ data }} |
| metric | {{ metric }} |
| licence | {{ licence }} |

## Limits

{{ limits }}

## Use

```python
from mmvitattn.huggingface import HubBackbone

model = HubBackbone.from_pretrained('FOLDER_OR_REPOSITORY').eval()
maps = model(images)  # (batch, {{ in_channels }}, height, width), normalised as in training
```
"""
CARD_DEFAULTS = dict(
    task='image features for detection, segmentation and classification',
    data='not stated',
    metric='not stated',
    licence='apache-2.0',
    limits='Evaluated on the data above only, if on any.',
)


class HubBackbone(nn.Module, PyTorchModelHubMixin):
    """A backbone with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    These are the methods of huggingface_hub's ``PyTorchModelHubMixin``. A folder contains
    ``model.safetensors``, ``config.json`` with the name and the options, and a model card.

    Args:
        name: name of the backbone, as for :func:`mmvitattn.build_backbone`.
        pretrained: checkpoint, as for :func:`mmvitattn.build_backbone`.
        options: options of the backbone; numbers, text, lists and dicts.

    Example:
        >>> HubBackbone('linglo_b0', out_indices=(1, 2, 3)).save_pretrained('linglo-b0')
        >>> HubBackbone.from_pretrained('linglo-b0').backbone.out_indices
        (1, 2, 3)
    """

    def __init__(self, name: str, pretrained: str | Path | None = None, **options: Any) -> None:
        super().__init__()
        self.name, self.options = name, options
        self.backbone = build_backbone(name, pretrained, **options)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Computes the maps of the backbone."""
        return self.backbone(image)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Writes weights, config and model card into a folder, from which nothing is removed.

        Args:
            save_directory: the folder; created if it is missing.
            config: ``config.json``; default: the name and the options.
            model_card_kwargs: what the model card states: ``task``, ``data``, ``metric``,
                ``licence``, ``limits``.
            kwargs: see huggingface_hub's ``save_pretrained``.

        Raises:
            UsageError: if the folder already contains a model.
        """
        for file in ('model.safetensors', 'config.json'):
            if (path := Path(save_directory, file)).exists():
                raise UsageError(f'{path} exists; name another folder, or remove the file')
        config = self.config() if config is None else config
        kwargs.update(config=config, model_card_kwargs=model_card_kwargs)
        return super().save_pretrained(save_directory, **kwargs)

    def config(self) -> dict[str, Any]:
        """Name and options with which :meth:`from_pretrained` builds the same model."""
        options = {key: value for key, value in self.options.items() if key != 'init_cfg'}
        if any(getattr(module, 'deployed', False) for module in self.backbone.modules()):
            options['deploy'] = True
        return dict(options, name=self.name)

    def generate_model_card(self, **kwargs: str) -> ModelCard:
        """The model card; the arguments are those of ``model_card_kwargs``."""
        info, stated = self.backbone.feature_info, {**CARD_DEFAULTS, **kwargs}
        data = ModelCardData(
            library_name='mmvitattn',
            license=stated['licence'],
            pipeline_tag='image-feature-extraction',
            tags=['backbone', 'efficient-attention', 'model_hub_mixin', 'pytorch_model_hub_mixin'],
        )
        return ModelCard.from_template(
            data,
            template_str=CARD,
            name=self.name,
            parameters=f'{sum(p.numel() for p in self.parameters()) / 1e6:.2f}',
            channels=', '.join(map(str, info.channels())),
            strides=', '.join(map(str, info.reduction())),
            in_channels=self.backbone.in_channels,
            **stated,
        )

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs: Any) -> 'HubBackbone':
        """Raises an error for missing weights; the mixin's default is to ignore them."""
        return super()._from_pretrained(strict=strict, **kwargs)
