"""The pages of the site: links to files that it lacks, and options that stay in one piece."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([\w./-]+(?:\.py|/README\.md))\)")
_CODE = re.compile(r"<code.*?</code>", re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--?[a-z][\w.]*")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Shows a link to a file of the repository as the file's path."""
    del page
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Marks the options of commands, which browsers would break after a hyphen."""
    del page
    marked = r'<span class="option">\g<0></span>'
    return _CODE.sub(lambda code: _OPTION.sub(marked, code[0]), html)
