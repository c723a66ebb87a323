"""Makefile, Dockerfile, pyproject.toml and docs/install.md agree about versions."""

import re


def lines(path, pattern):
    return re.findall(pattern, path.read_text('utf-8'), re.MULTILINE)


def test_dockerfile_installs_the_pinned_torch_and_existing_files(root):
    assert lines(root / 'Dockerfile', r'^ARG TORCH="(.*)"$') == lines(
        root / 'Makefile', r'^TORCH_onedl := (.*)$'
    )
    copied = ' '.join(lines(root / 'Dockerfile', r'^COPY (.*) \S+$')).split()
    assert copied and [name for name in copied if not (root / name).exists()] == []


def test_table_has_the_classified_pythons_and_the_pinned_torch(root):
    rows = lines(root / 'docs/install.md', r'^\| (3\.\d+) \| (\w+) \| ')
    versions = lines(root / 'pyproject.toml', r'"Programming Language :: Python :: (3\.\d+)"')
    assert rows == [(v, stack) for v in versions for stack in ('none', 'onedl', 'openmmlab')]
    (header,) = lines(root / 'docs/install.md', r'^\| Python \|.*$')
    (pinned,) = lines(root / 'Makefile', r'^TORCH_onedl := torch==(\S+)')
    assert f'| pinned: {pinned} |' in header
