"""Runs a tool of this package: ``mmvitattn TOOL ARGUMENTS``; without arguments, lists the tools.

``python -m mmvitattn`` does the same. A config that does not exist in the working directory is
looked up in the package: ``mmvitattn train retinanet_linglo_b2_fpn_1x_coco.py`` works anywhere.
"""

import ast
import runpy
import sys
from pathlib import Path

from mmvitattn import hub
from mmvitattn.errors import UsageError, usage_errors_exit


def find_tools() -> dict[str, Path]:
    """Finds the tools, Python files that run as a script, by name."""
    paths = sorted((hub.resources() / 'tools').rglob('*.py'))
    return {p.stem: p for p in paths if "__name__ == '__main__'" in p.read_text(encoding='utf-8')}


def describe(tools: dict[str, Path]) -> str:
    """Lists each tool with the first line of its docstring."""
    width = max(map(len, tools))
    lines = ['usage: mmvitattn TOOL ARGUMENTS', '']
    for name, path in tools.items():
        doc = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
        lines.append(f'  {name:<{width}}  {doc.split(chr(10))[0]}')
    return '\n'.join([*lines, '', f'configs: {hub.resources() / "configs"}'])


def resolved(argument: str) -> str:
    """Returns the argument, or the path of the package's config that it names."""
    if not argument.endswith('.py') or Path(argument).exists():
        return argument
    name = argument.removeprefix('configs/').removesuffix('.py')
    return str(hub.config_path(name)) if name in hub.list_configs() else argument


def main(arguments: list[str] | None = None) -> None:
    """Runs the tool that the first argument names with the other arguments.

    Args:
        arguments: command line without the program's name; by default that of this process.

    Raises:
        SystemExit: 2, with a message, for an unknown tool.
    """
    with usage_errors_exit():
        arguments = sys.argv[1:] if arguments is None else arguments
        tools = find_tools()
        if not arguments or arguments[0] in ('-h', '--help'):
            print(describe(tools))
            return
        name, *rest = arguments
        if name not in tools:
            raise UsageError(f'there is no tool {name!r}; choose one of {", ".join(tools)}')
    sys.argv = [str(tools[name]), *map(resolved, rest)]
    runpy.run_path(sys.argv[0], run_name='__main__')


def run_onnx() -> None:
    """The command ``mmvitattn-onnx``: runs ``tools/deploy/run_onnx.py``."""
    main(['run_onnx', *sys.argv[1:]])


if __name__ == '__main__':
    main()
