"""The player's JavaScript as the one module that browsers get: its files joined by text, so there is no build."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./\w+\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:const|function|class) )", re.MULTILINE)


@cache
def module(*names: str) -> str:
    """The source of draw.js, player.js and any further files of this folder, as one module in one scope."""
    folder = files(__package__)
    sources = [folder.joinpath(name).read_text(encoding="utf-8") for name in ("draw.js", "player.js", *names)]
    return _EXPORT.sub("", _IMPORT.sub("", "\n".join(sources)))
