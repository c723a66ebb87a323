"""Lets mkdocstrings read what its parser of Google docstrings does not know."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Reads ``Example:`` as a section of examples, and Sphinx roles as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of an object before it is parsed."""
        if obj.docstring:
            text = re.sub(r'^Example:$', 'Examples:', obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r':(?:attr|class|func|meth|mod):`~?', '`', text)
