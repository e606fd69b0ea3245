"""Docstrings for the site: what is no section of Google's style, as Markdown."""

import re
from typing import Any

import griffe

_SENTENCE = re.compile(r"^([A-Z][a-z]+): (\S.*(?:\n +\S.*)*)", re.MULTILINE)  # Returns: an array
_FIELD = re.compile(r"^([a-z]\w*): (\S.*(?:\n +\S.*)*)", re.MULTILINE)
_DOCTEST = re.compile(r"^>>> .*(?:\n\S.*)*", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|\s)# (.*)$")


class Docstrings(griffe.Extension):
    """Docstrings as Markdown, and comments beside fields as their docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites one docstring."""
        if obj.docstring:
            text = _SENTENCE.sub(r"**\1:** \2", obj.docstring.value)
            text = _FIELD.sub(r"- `\1`: \2", text)
            obj.docstring.value = _DOCTEST.sub(r"```pycon\n\g<0>\n```", text)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Gives a field of a class the comment behind it or, without one, that above it."""
        if attr.docstring or not attr.lineno or not attr.parent or not attr.parent.is_class:
            return
        lines = attr.lines_collection[attr.filepath]
        found = _COMMENT.search(lines[attr.endlineno - 1])
        comments = [found[1]] if found else []
        above = attr.lineno - 1
        while not found and lines[above - 1].lstrip().startswith("# "):
            above -= 1
            comments.insert(0, lines[above].lstrip()[2:])
        if comments:
            attr.docstring = griffe.Docstring(" ".join(comments), parent=attr)
