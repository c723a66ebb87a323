"""Runs a tool of this package: ``python -m mmvitattn TOOL ARGUMENTS``; alone it lists the tools.

A config that is not there is looked for among those of the package: ``python -m mmvitattn train
retinanet_linglo_b2_fpn_1x_coco.py`` works from any folder.
"""

import ast
import runpy
import sys
from pathlib import Path

from mmvitattn import hub
from mmvitattn.engine.errors import UsageError, usage_errors_exit


def find_tools() -> dict[str, Path]:
    """The tools by name: those Python files that run as a script."""
    paths = sorted((hub.resources() / 'tools').rglob('*.py'))
    return {p.stem: p for p in paths if "__name__ == '__main__'" in p.read_text(encoding='utf-8')}


def describe(tools: dict[str, Path]) -> str:
    """One line for each tool: its name and the first line of its docstring."""
    width = max(map(len, tools))
    lines = ['usage: python -m mmvitattn TOOL ARGUMENTS', '']
    for name, path in tools.items():
        doc = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
        lines.append(f'  {name:<{width}}  {doc.split(chr(10))[0]}')
    return '\n'.join([*lines, '', f'configs: {hub.resources() / "configs"}'])


def resolved(argument: str) -> str:
    """The argument, or the path of the package's config that it names."""
    if not argument.endswith('.py') or Path(argument).exists():
        return argument
    name = argument.removeprefix('configs/').removesuffix('.py')
    return str(hub.config_path(name)) if name in hub.list_configs() else argument


def main(arguments: list[str]) -> None:
    """Runs the tool that the first argument names, with the others.

    Args:
        arguments: of the command line, without the program's name.

    Raises:
        SystemExit: 2, with a message, for an unknown tool.
    """
    with usage_errors_exit():
        tools = find_tools()
        if not arguments or arguments[0] in ('-h', '--help'):
            print(describe(tools))
            return
        name, *rest = arguments
        if name not in tools:
            raise UsageError(f'there is no tool {name!r}; choose one of {", ".join(tools)}')
    sys.argv = [str(tools[name]), *map(resolved, rest)]
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main(sys.argv[1:])
