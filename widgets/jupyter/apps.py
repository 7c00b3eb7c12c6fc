"""`widgets.Descent()`, `widgets.Training(...)`, …: the apps in a frame of a notebook, served by its kernel."""

import html
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workbench as wb
from widgets.apps.desk import Desk
from widgets.jupyter.follow import Follower
from widgets.jupyter.host import server
from widgets.server import Server
from workbench.routine import unknown

HEIGHT = 760
LOOK_SECONDS = 0.1


class Seat:
    """A desk as one of several pages sees it: closing a page ends its listeners, and the desk stays as it is."""

    def __init__(self, app: "App") -> None:
        vars(self).update(_app=app, _desk=app.desk, _undo=[])

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_desk"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "can_draw":
            self._app.seats[id(self)] = value
        else:
            setattr(self._desk, name, value)

    def on(self, signal: str, callback: Callable) -> None:
        """As of a desk, until this page closes."""
        self._undo.append(self._desk.on(signal, callback))

    def close(self) -> None:
        """The page has gone; a desk that no page shows any more pauses."""
        for undo in self._undo:
            undo()
        self._undo.clear()
        if self._app.seats.pop(id(self), None) is not None and not self._app.seats:
            self._desk.do(self._desk.session.pause)


class App:
    """An app in a notebook. Every frame that shows it shows the same run; `session` is that run for your own code.

    It goes when no variable and no frame holds it any more, or on `close()`. Its address is secret: who knows it can
    use the app.
    """

    token = ""

    def __init__(self, desk: Desk, shell: Callable[[Any], Any], height: int) -> None:
        if isinstance(height, bool) or not isinstance(height, int) or not 200 <= height <= 4000:
            desk.close()
            raise ValueError(f"expected height to be a whole number of CSS pixels from 200 to 4000, got {height!r}")
        self.desk, self.height, self._shell = desk, height, shell
        self.seats: dict[int, Callable[[], bool]] = {}
        self._seen: Any = None
        seats = self.seats
        desk.can_draw = lambda: any(idle() for idle in list(seats.values()))
        self._end = weakref.finalize(self, desk.close)
        self._follower = Follower(self._look, f"notebook app {desk.name}")

    # ---- for your own code

    @property
    def session(self) -> wb.Session:
        """The live session, the one that the frames show; another one after a branch or other settings."""
        return self.desk.session

    def record(self) -> Any:
        """The live run as a record (`xarray.Dataset`), in at most about 2,000 frames."""
        return self.desk.record()

    def script(self) -> str:
        """The live run as a Python script that makes it again."""
        return self.desk.script()

    def close(self) -> None:
        """Stop, and let go of the run; its frames say so."""
        if self._end.alive:
            self.desk.tell("message", "This app was closed in its notebook. Run its cell again.", "info")
            self._end()
            self._follower.wake()
            if self.token:
                server().drop(self)

    @property
    def url(self) -> str:
        """Where a browser finds it; starts the kernel's server. Secret, as a password is.

        Raises:
            ValueError: when it was closed.
        """
        if not self._end.alive:
            raise ValueError(f"expected an open app, got one that was closed; make a new {type(self).__name__}")
        host = server()
        host.add(self)
        return host.address_of(self)

    # ---- frames

    def __repr__(self) -> str:
        if not self._end.alive:
            return f"<{self.desk.title}: closed>"
        return f"<{self.desk.title}: {self.desk.status()}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        if not self._end.alive:
            return {"text/plain": repr(self)}
        style = "border:1px solid #8886;border-radius:6px;background:transparent"
        frame = (
            f'<iframe src="{html.escape(self.url)}" title="{html.escape(self.desk.title)}" width="100%" '
            f'height="{self.height}" style="{style}" allow="clipboard-write"></iframe>'
        )
        server().keep(self)
        return {"text/plain": repr(self), "text/html": frame}

    def open_page(self, host: Server) -> Any:
        """One frame more; called by the kernel's server."""
        page = host.open(lambda query: self._shell(Seat(self)))
        if hasattr(page, "header"):
            page.header = []
        return page

    def _look(self) -> float | None:
        """Shows what code did to the session: a desk hears only of what it did itself, and of playing."""
        desk = self.desk
        if desk.closed:
            return None
        session = desk.session
        stamp = (id(session), session.now, len(session.edits), len(session.others), session.playing)
        if stamp != self._seen:
            known, self._seen = self._seen is not None, stamp
            if known and self.seats and not session.playing:
                desk.do(lambda: None, newest="look")
        return LOOK_SECONDS


class Descent(App):
    """The Descent app in a frame: optimizers side by side on a surface.

    Args:
        height: of the frame, in CSS pixels.
        runs: folder of saved runs.
        settings: what the app starts with: `surface` (catalogue name or expression), `methods` (list of optimizers),
            `start`, `seed`, and `hyper`, first values such as `{"adam.lr": 0.1}`.

    Raises:
        ValueError: on a setting that does not exist or is not legal.
    """

    def __init__(self, *, height: int = HEIGHT, runs: str | Path = "runs", **settings: Any) -> None:
        from widgets.apps.descent import DescentDesk, DescentShell

        super().__init__(_opened(DescentDesk, settings, runs=runs), DescentShell, height)


class Training(App):
    """The Training app in a frame, on its own data and networks or on yours.

    Args:
        model: an `nn.Module` (its weights now are the start), or the name of one in the catalogue.
        loss: "cross_entropy", "mse" or loss(outputs, targets) -> one number; goes by the data when None.
        data: (x, y) or (x, y, x_test, y_test) as arrays, a `Data`, or a catalogue name.
        optimizer: a catalogue name, an `Optimizer`, or a subclass of `torch.optim.Optimizer`.
        height, runs: as of `Descent`.
        settings: what the app starts with, such as `width`, `depth`, `seed`, and `hyper`, first values such as
            `{"lr": 0.01}`.

    Raises:
        ValueError: on a setting that does not exist or is not legal, or when model, loss and data do not go together.
    """

    def __init__(
        self,
        model: Any = None,
        loss: Any = None,
        data: Any = None,
        optimizer: Any = "adam",
        *,
        height: int = HEIGHT,
        runs: str | Path = "runs",
        **settings: Any,
    ) -> None:
        from widgets.apps.training import TrainingDesk
        from widgets.apps.training_view import TrainingShell

        own = {"model": model, "loss": loss, "data": data, "optimizer": optimizer}
        super().__init__(_opened(TrainingDesk, settings, runs=runs, **own), TrainingShell, height)


class Landscape(App):
    """The Landscape app in a frame: the loss around your network as it learns, and how curved it is.

    Args:
        model, loss, data: as of `Training`.
        height, runs: as of `Descent`.
        settings: what the app starts with, such as `columns`, trainings side by side like
            `[{"optimizer": "sgd"}, {"optimizer": "adam"}]`, `plane`, `width`, and `hyper`, first values such as
            `{"A.lr": 0.3}`.

    Raises:
        ValueError: on a setting that does not exist or is not legal, or when model, loss and data do not go together.
    """

    def __init__(
        self,
        model: Any = None,
        loss: Any = None,
        data: Any = None,
        *,
        height: int = HEIGHT,
        runs: str | Path = "runs",
        **settings: Any,
    ) -> None:
        from widgets.apps.landscape import LandscapeDesk
        from widgets.apps.landscape_view import LandscapeShell

        desk = _opened(LandscapeDesk, settings, runs=runs, model=model, loss=loss, data=data)
        super().__init__(desk, LandscapeShell, height)


class Flow(App):
    """The Flow app in a frame: train a flow to a density of the catalogue or to yours.

    Args:
        target: a `Density`, or an array of points (n, 2); None is chosen in the app.
        height, runs: as of `Descent`.
        settings: what the app starts with, such as `target` (catalogue name), `columns`, settings side by side like
            `[{}, {"coupling": "minibatch-ot"}]`, and `hyper`, first values such as `{"A.lr": 0.001}`.

    Raises:
        ValueError: on points or a setting that are not legal.
    """

    def __init__(self, target: Any = None, *, height: int = HEIGHT, runs: str | Path = "runs", **settings: Any) -> None:
        from widgets.apps.flow import FlowDesk
        from widgets.apps.flow_view import FlowShell

        if isinstance(target, str):
            settings["target"], target = target, None
        elif target is not None and not isinstance(target, wb.Density):
            target = wb.from_points(target)
        super().__init__(_opened(FlowDesk, settings, runs=runs, target=target), FlowShell, height)

    def field(self, run: int = 0) -> wb.Field:
        """The field that one of the settings has learned so far."""
        return self.desk.fields(self.session)[run]  # type: ignore[attr-defined]


class Sampler(App):
    """The Sampler app in a frame: step solvers through a field.

    Args:
        field: a `Field` (trained, loaded or exact) or your own velocity f(x, t); None is chosen in the app.
        height, runs: as of `Descent`.
        settings: what the app starts with, such as `target`, `interpolant`, `samplers` (a list like
            `[{"solver": "euler", "steps": 8}]`), `samples`, and `hyper`, first values such as `{"heun.steps": 4}`.

    Raises:
        ValueError: on a field or a setting that is not legal.
    """

    def __init__(self, field: Any = None, *, height: int = HEIGHT, runs: str | Path = "runs", **settings: Any) -> None:
        from widgets.apps.sampler import SamplerDesk
        from widgets.apps.sampler_view import SamplerShell

        super().__init__(_opened(SamplerDesk, settings, runs=runs, field=field), SamplerShell, height)


def _opened(kind: Callable[..., Desk], settings: dict[str, Any], **options: Any) -> Desk:
    """A desk with these settings on it.

    Raises:
        ValueError: on those it does not know or take.
    """
    try:
        query = {name: json.dumps(value) for name, value in settings.items()}
    except TypeError as error:
        raise ValueError(f"expected settings of plain numbers, text and lists, got one that is not: {error}") from None
    desk = kind(query=query, **options)
    errors = list(desk.opening_errors)
    known = {*desk.default_settings(), "hyper"}
    errors += [str(unknown("a setting", name, known)) for name in settings if name not in known]
    if errors:
        desk.close()
        raise ValueError("; ".join(errors))
    return desk


__all__ = ["App", "Descent", "Flow", "Landscape", "Sampler", "Training"]
