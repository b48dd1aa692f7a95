"""Lets mkdocstrings read the docstrings as `handbook.prose` writes them."""

from typing import Any

import griffe

from handbook import prose


class Prose(griffe.Extension):
    """Rewrites each docstring once, when its object has been collected."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called of modules, classes, functions and attributes alike."""
        if obj.docstring:
            obj.docstring.value = prose.markdown(obj.docstring.value)
