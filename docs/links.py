"""Links of a page to files beside the documentation, which the site does not contain."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([\w./-]+(?:\.py|/README\.md))\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Shows a link to a file of the repository as the file's path."""
    del page
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)
