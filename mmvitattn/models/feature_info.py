"""Description of a backbone's outputs, in timm's form."""

from collections.abc import Iterable


class FeatureInfo(list):
    """One dict for each output: ``num_chs`` channels, ``reduction`` stride, ``module`` its name."""

    def __init__(self, entries: Iterable[dict]) -> None:
        super().__init__(entries)

    def channels(self) -> list[int]:
        """Channels of each output."""
        return [entry['num_chs'] for entry in self]

    def reduction(self) -> list[int]:
        """Stride of each output against the image, in pixels."""
        return [entry['reduction'] for entry in self]

    def module_name(self) -> list[str]:
        """Name of the module that gives each output."""
        return [entry['module'] for entry in self]
