"""Descent: optimizers side by side on a surface. The desk decides what happens, the view is the page around it."""

from widgets.apps.descent_desk import DescentDesk
from widgets.apps.descent_view import DescentShell, page

__all__ = ["DescentDesk", "DescentShell", "page"]
