"""The pretrained weights that the model of a config names in its ``init_cfg`` entries."""

from collections.abc import Iterator, Mapping
from typing import Any


def pretrained_files(cfg: Mapping) -> list[str]:
    """Checkpoints that the model is initialised from, each once.

    Returns:
        Paths and addresses.
    """
    entries = [entry for part in _initialised_parts(cfg['model']) for entry in _entries(part)]
    return list(dict.fromkeys(str(e['checkpoint']) for e in entries if _is_pretrained(e)))


def drop_pretrained(cfg: Mapping) -> None:
    """Removes every pretrained initialisation from the model's config, in place."""
    for part in list(_initialised_parts(cfg['model'])):
        kept = [entry for entry in _entries(part) if not _is_pretrained(entry)]
        if len(kept) < len(_entries(part)):
            part['init_cfg'] = kept or None


def _initialised_parts(node: Any) -> Iterator[dict]:
    """Parts of a model config that have an ``init_cfg``."""
    if isinstance(node, Mapping):
        if node.get('init_cfg'):
            yield node  # type: ignore[misc]
        node = node.values()
    elif not isinstance(node, list | tuple):
        return
    for value in node:
        yield from _initialised_parts(value)


def _entries(part: Mapping) -> list:
    entries = part['init_cfg']
    return entries if isinstance(entries, list) else [entries]


def _is_pretrained(entry: Mapping) -> bool:
    return entry.get('type') == 'Pretrained'
