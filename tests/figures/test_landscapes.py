"""Figures of landscapes hold the numbers of their records, and say what the plane leaves out."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench import landscapes
from workbench.figures.landscapes import contours, plane_against_true, profile, spectrum, surface


@pytest.fixture(scope="module")
def made():
    scene = landscapes.landscape(wb.make("mlp", width=6), "cross_entropy", "digits")
    generator = torch.Generator().manual_seed(0)
    points = scene.start + 0.1 * torch.randn(2, 5, scene.dim, generator=generator).cumsum(1)
    plane = landscapes.pca_plane(points)
    grid = landscapes.slice2d(scene, plane, span=landscapes.fit_span(plane, points), points=5)
    return scene, grid, landscapes.on_plane(scene, plane, points)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_slice_and_its_paths_are_drawn_where_they_are(made, theme):
    _, grid, path = made
    figure = contours(grid, path, theme=theme)
    np.testing.assert_allclose(figure.data[0].z, np.log10(grid.loss.values))
    for run in range(2):
        np.testing.assert_allclose(figure.data[1 + run].x, path.a[run])
        np.testing.assert_allclose(figure.data[1 + run].y, path.b[run])
    words = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert f"{100 * path.attrs['variance_share']:.1f} % of the path's variance" in words
    assert "1,438 training samples" in words
    np.testing.assert_allclose(surface(grid, theme=theme).data[0].z, np.log10(grid.loss.values))


def test_the_true_loss_stands_beside_that_of_the_plane(made):
    _, _, path = made
    figure = plane_against_true(path)
    np.testing.assert_allclose(figure.data[2].y, path.loss[1])
    np.testing.assert_allclose(figure.data[3].y, path.plane_loss[1])
    assert figure.data[3].line.dash == "dash"
    assert len(plane_against_true(path.isel(run=0)).data) == 2


def test_a_profile_has_a_band_of_its_error(made):
    scene, _, _ = made
    line = landscapes.slice1d(scene, points=7)
    band, curve = profile(line).data
    np.testing.assert_allclose(curve.y, line.loss)
    np.testing.assert_allclose(np.array(band.y[:7]) - line.loss, line.loss_error, rtol=1e-4)


def test_what_is_not_finite_is_left_blank_and_said(made):
    _, grid, _ = made
    holed = grid.copy(deep=True)
    holed.loss[0, 0] = np.nan
    assert "4.0% of the points" in contours(holed).layout.title.subtitle.text.replace("<br>", " ")


def test_a_spectrum_has_a_band_of_its_error_over_the_probes(made):
    scene, _, _ = made
    found = landscapes.spectral_density(landscapes.hessian(scene), probes=3, steps=12)
    band, curve = spectrum(found).data
    assert spectrum(found).layout.yaxis.type == "log"
    np.testing.assert_allclose(curve.y, np.maximum(found.density, 1e-7))
    np.testing.assert_allclose(band.y[:400], np.maximum(found.density + found.density_error, 1e-7))
    assert "3 random vectors of 12 steps" in spectrum(found).layout.title.subtitle.text.replace("<br>", " ")
