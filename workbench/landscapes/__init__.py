"""Loss landscapes: slices through them, their curvature, paths between solutions, and the geometry of the way there.

Plain functions of a `Landscape` (a loss over all parameters) and of points in it; pictures come back as records.
"""

from workbench.landscapes.landscape import FunctionLandscape, Landscape, ModelLandscape, landscape, of_training

__all__ = [
    "FunctionLandscape",
    "Landscape",
    "ModelLandscape",
    "landscape",
    "of_training",
]
