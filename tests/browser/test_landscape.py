"""The Landscape app as a teacher uses it: three rates on one plane, sharpness at 2/lr, the spectrum, ways between."""

from playwright.sync_api import expect

from tests.browser.driving import (
    PHONE,
    TIMEOUT,
    download,
    linked,
    open_app,
    play_to,
    press,
    quiet,
    said,
    standing,
    table,
    until,
)

SMALL = "width=16&depth=1&points=25"
PICTURE = "Object.values(window.__players)[0].player.scene"


def title(page):
    return page.evaluate(f"{PICTURE}.title")


def test_three_rates_on_one_plane_the_edge_the_spectrum_and_ways_between(server, page, new_page):
    open_app(page, f"{server}/landscape?{SMALL}")
    until(page, lambda: "filter" in title(page), "a random plane while there are no paths")
    play_to(page, 300)
    until(page, lambda: "of their variance" in title(page), "a plane of the paths that says what it holds")
    assert "training samples" in page.evaluate(f"{PICTURE}.field.label")
    until(page, lambda: table(page).get("edge", {}).get("C") == "2.5", "the edge 2/lr of C")
    until(page, lambda: 2 < float(table(page)["sharpness"]["C"]) < 3, "sharpness of C near its edge")
    at = standing(page)[0]
    press(page, "One step back")
    until(page, lambda: standing(page)[0] == at - 1, "one step back")
    page.get_by_role("tab", name="Path").click()
    expect(page.get_by_text("True loss, and the loss on the plane below it").first).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("tab", name="Spectrum").click()
    press(page, "The density of the Hessian")
    expect(page.get_by_text(f"C at step {at - 1:,}").first).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("tab", name="Ways").click()
    press(page, "The loss along ways")
    expect(page.get_by_role("cell", name="trained curve (quadratic Bézier)")).to_be_visible(timeout=TIMEOUT)
    assert "<html" in download(page, "Page that plays").read_text()
    linked(page, "step=")
    twin = open_app(new_page(), page.url)
    until(twin, lambda: standing(twin)[0] == at - 1, "the step of the link")
    quiet(page)


def test_a_link_says_the_plane_and_a_bad_one_is_told(server, page):
    open_app(page, f"{server}/landscape?{SMALL}&plane=flat&step=12")
    expect(page.get_by_text("expected a plane to be one of").first).to_be_visible(timeout=TIMEOUT)
    open_app(page, f"{server}/landscape?{SMALL}&step=12&plane=sharpest")
    until(page, lambda: "sharpest" in title(page), "the sharpest plane")
    assert standing(page) == (12, 12)
    assert "step 12" in said(page)
    quiet(page)


def test_it_fits_a_phone(server, new_page):
    page = open_app(new_page(**PHONE), f"{server}/landscape?{SMALL}&step=12")
    until(page, lambda: standing(page)[0] == 12, "the step of the link")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 391
    quiet(page)


def test_tabs_turned_quickly_complain_of_nothing(server, page):
    open_app(page, f"{server}/landscape?{SMALL}")
    until(page, lambda: page.evaluate("() => !!window.Plotly?.relayout.forgives"), "the page to be ready")
    for pause in (5, 20, 40, 80, 120, 200) * 2:
        for name in ("Path", "3-D", "Spectrum", "Ways", "Curvature"):
            page.get_by_role("tab", name=name, exact=True).click()
            page.wait_for_timeout(pause)
    quiet(page)
