"""The Flow app as a person uses it: draw a target, train two settings side by side, reflow, go on in Sampler."""

import math

from playwright.sync_api import expect

from tests.browser.driving import PHONE, download, linked, open_app, play_to, press, quiet, said, standing, table, until

SMALL = "width=32&depth=2&batch=64"


def place(page, x, y):
    """Pixels of a place in the picture, from its data coordinates."""
    box = page.locator("canvas").first.bounding_box()
    at = page.evaluate(
        "([x, y]) => { const v = Object.values(window.__players)[0].player.view; return [v.px(x), v.py(y)]; }", [x, y]
    )
    return box["x"] + at[0], box["y"] + at[1]


def stroke(page, points):
    page.mouse.move(*place(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*place(page, *point), steps=8)
    page.mouse.up()


def measured(page, row, head):
    """What the table of measures says; inf before it does."""
    cells = next((cells for name, cells in table(page).items() if name.startswith(row)), None)
    return float(cells[head]) if cells else math.inf


def compare(page):
    """Three solvers on the same noise at 4, 8 and 16 evaluations, back and forth, and taken away."""
    for count in (4, 8, 16):
        press(page, f"As many steps as {count} evaluations")
        until(page, lambda: standing(page)[0] == 0, "a new start")
        press(page, "Play or pause")
        until(page, lambda: "arrived" in said(page), "the samples to arrive")
        solvers = ("Euler", "Heun", "DPM-Solver++(2M)")
        used = dict.fromkeys(solvers, count)
        until(page, lambda used=used: {s: measured(page, s, "NFE") for s in used} == used, f"{count} evaluations each")
    at = standing(page)[0]
    press(page, "One step back")
    until(page, lambda: standing(page)[0] == at - 1, "one step back")
    press(page, "One step on")
    until(page, lambda: standing(page)[0] == at, "one step on")
    assert "<html" in download(page, "Page that plays").read_text()


def test_a_drawn_smiley_is_learned_by_two_settings_reflowed_and_opened_in_sampler(server, page, new_page):
    open_app(page, f"{server}/flow?{SMALL}")
    press(page, "Draw the target")
    expect(page.get_by_role("button", name="Train on this drawing")).to_be_visible()
    page.wait_for_function("Object.values(window.__players)[0].player.scene.draw")
    stroke(page, [(-2.5, -0.5), (-1.5, -2), (0, -2.5), (1.5, -2), (2.5, -0.5)])
    stroke(page, [(-1, 1), (-1, 2)])
    stroke(page, [(1, 1), (1, 2)])
    page.wait_for_function("Object.values(window.__players)[0].player.frame.layers[0].x.length > 60")
    press(page, "Train on this drawing")
    linked(page, "points=")
    press(page, "Add a setting")
    until(page, lambda: page.get_by_role("combobox", name="Coupling B").count() == 1, "a second setting")
    play_to(page, 150)
    press(page, "Train again on the pairs")
    until(page, lambda: standing(page) == (0, 0), "a new round")
    play_to(page, 150)
    for label in "AB":
        then = measured(page, f"before reflow 1: {label}", "curvature")
        until(page, lambda label=label, then=then: measured(page, f"{label}:", "curvature") < then, "straighter paths")
    bent = measured(page, "before reflow 1: A", "curvature")
    assert measured(page, "before reflow 1: B", "curvature") < bent / 2, "optimal transport straightens"
    assert measured(page, "A:", "curvature") < bent / 2, "reflow straightens"
    press(page, "Keep these fields for Sampler")
    expect(page.get_by_role("link", name="Open Sampler")).to_be_visible()
    twin = open_app(new_page(), f"{server}/sampler?field=flow%20drawn%20A")
    expect(twin.get_by_role("combobox", name="Field")).to_contain_text("Trained: flow drawn A")
    compare(twin)
    quiet(page)
    quiet(twin)


def test_a_link_opens_the_same_drawing_and_the_same_run(server, page, new_page):
    points = "points=%5B%5B0,1%5D,%5B1,0%5D,%5B2,2.5%5D,%5B-1,-1%5D%5D"
    open_app(page, f"{server}/flow?{SMALL}&target=drawn&{points}")
    play_to(page, 20)
    step = standing(page)[0]
    twin = open_app(new_page(), page.url)
    until(twin, lambda: standing(twin)[0] == step, "the same step")
    quiet(page)
    quiet(twin)


def test_sliders_turn_while_it_trains_and_particles_can_be_stopped_anywhere(server, page):
    open_app(page, f"{server}/flow?{SMALL}")
    press(page, "Play or pause")
    until(page, lambda: standing(page)[0] > 10, "it to train")
    rate = page.get_by_role("slider", name="A lr").first
    rate.focus()
    page.keyboard.press("ArrowLeft")
    time = page.get_by_role("slider", name="flow time")
    time.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    until(page, lambda: not page.get_by_role("switch", name="let particles flow").is_checked(), "particles to rest")
    press(page, "Play or pause")
    linked(page, "edits=")
    quiet(page)


def test_a_page_that_plays_is_taken_away(server, page):
    open_app(page, f"{server}/flow?{SMALL}")
    play_to(page, 10)
    assert "<html" in download(page, "Page that plays").read_text()
    quiet(page)


def test_it_fits_a_phone(server, new_page):
    page = open_app(new_page(**PHONE), f"{server}/flow?{SMALL}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    quiet(page)
