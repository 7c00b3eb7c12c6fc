"""What has to be mended between Bokeh and Panel so that a served page loses nothing."""

from typing import Any

import panel as pn
from bokeh.server.session import ServerSession


def mark_pulled() -> None:
    """Counts a page as connected once its browser has fetched it, for pages from now on; again changes nothing.

    Panel (1.9.4) does so at the browser's "document ready", on a busy machine seconds after the picture is there. Until
    then it drops what changes, as if the browser had nothing yet: a theme or an answer would be lost for good.
    """
    original: Any = ServerSession._handle_pull
    if getattr(original, "marks", False):
        return

    async def pull_and_mark(self: ServerSession, *args: Any) -> Any:
        reply = await original(self, *args)
        pn.state._connected[self.document] = True
        return reply

    pull_and_mark.marks = True  # type: ignore[attr-defined]
    ServerSession._handle_pull = pull_and_mark  # type: ignore[method-assign, assignment]
