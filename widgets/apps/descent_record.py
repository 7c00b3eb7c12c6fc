"""The paths of a Descent desk as a small record, for figures that take one; made from positions already known."""

from typing import Any

import numpy as np
import xarray as xr

MOST = 1500


def path_record(desk: Any) -> xr.Dataset:
    """Positions and losses of every method up to where the live session stands, in at most about 1,500 steps."""
    index, state = desk.session.now
    track = desk.track(desk.session)
    steps, losses, _ = track.measured()
    until = int(np.searchsorted(steps, index))
    rows = np.unique(np.append(np.arange(0, until, max(1, until // MOST)), until - 1)) if until else np.arange(0)
    heads = np.concatenate([part.x.numpy() for part in state.parts], 1)
    points = np.concatenate([track.points.array[rows], heads[None]])
    ends = desk.objective_values(heads)
    variables = {
        "x": (("run", "step", "dim"), points.transpose(2, 0, 1)),
        "loss": (("run", "step"), np.concatenate([losses[rows], ends[None]]).T),
        "diverged_at": (("run",), state.diverged.numpy()),
    }
    coords = {"method": ("run", desk.labels), "step": np.append(steps[rows], index), "dim": list(desk.objective.dims)}
    return xr.Dataset(variables, coords)
