"""The state of an app in its address: readable names for what was chosen, one packed text for the edits.

Every value is read by itself: a bad one is reported and left out, the others count.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

MAX_TEXT = 6000


def pack(
    settings: Mapping[str, Any], default: Mapping[str, Any], *, first: Mapping, edits: Sequence, step: int
) -> dict:
    """Text by name: settings that differ from the default, first values, edits, and the step it stands at."""
    found = {name: json.dumps(value) for name, value in settings.items() if value != default.get(name)}
    found = {name: json.loads(text) if _is_bare(text) else text for name, text in found.items()}
    if first:
        found["hyper"] = json.dumps(dict(first), separators=(",", ":"))
    if edits:
        found["edits"] = _squeeze([list(edit) for edit in edits])
    if step:
        found["step"] = str(step)
    return found


def _is_bare(text: str) -> bool:
    """Whether a JSON text is a word that may stand in a link without its quotes."""
    return text.startswith('"') and not _looks_like_json(json.loads(text))


def _looks_like_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def unpack(query: Mapping[str, str], default: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """({settings, first, edits, step}, errors) from a link's text by name."""
    found: dict[str, Any] = {"settings": {}, "first": {}, "edits": [], "step": 0}
    errors = []
    for name, text in query.items():
        try:
            _take(found, name, text, default)
        except (ValueError, zlib.error):
            errors.append(f"The link's {name!r} could not be read ({text[:40]!r}) and was left out.")
    return found, errors


def _take(found: dict[str, Any], name: str, text: str, default: Mapping[str, Any]) -> None:
    if len(text) > MAX_TEXT:
        raise ValueError("too long")
    if name == "step":
        found["step"] = max(0, min(int(text), 1_000_000))
    elif name == "hyper":
        found["first"] = _checked(json.loads(text), dict)
    elif name == "edits":
        found["edits"] = [(int(k), str(target), value) for k, target, value in _checked(_expand(text), list)]
    elif name in default:
        value = json.loads(text) if _looks_like_json(text) else text
        found["settings"][name] = value


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}")
    return value


def _squeeze(value: Any) -> str:
    packed = zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _expand(text: str) -> Any:
    packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    opened = zlib.decompressobj()
    raw = opened.decompress(packed, 200_000)
    if opened.unconsumed_tail:
        raise ValueError("too long")
    return json.loads(raw)
