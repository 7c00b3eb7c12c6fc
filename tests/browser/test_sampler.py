"""The Sampler app as a person uses it: budgets, one evaluation after the other, errors, digits, links, a kept page."""

from playwright.sync_api import expect

from tests.browser.driving import PHONE, download, linked, open_app, press, quiet, said, standing, until


def test_solvers_are_compared_at_eight_evaluations_step_by_step_and_back(server, page):
    open_app(page, f"{server}/sampler")
    press(page, "As many steps as 8 evaluations")
    linked(page, "edits=")
    for step in (1, 2):
        press(page, "One step on")
        until(page, lambda step=step: standing(page)[0] == step, f"step {step}")
    press(page, "Go to the next point")
    until(page, lambda: "evaluation 1" in said(page), "the first evaluation of the next step")
    press(page, "One step back")
    until(page, lambda: "evaluation" not in said(page), "to be back at the step")
    press(page, "One step back")
    until(page, lambda: standing(page)[0] == 1, "one step back")
    press(page, "Play or pause")
    until(page, lambda: "arrived" in said(page), "the samples to arrive")
    expect(page.get_by_role("cell", name="Heun")).to_be_visible()
    quiet(page)


def test_error_against_evaluations_is_worked_out_on_request(server, page):
    open_app(page, f"{server}/sampler?target=two-modes")
    page.get_by_role("tab", name="Error per evaluation").click()
    press(page, "Work it out")
    expect(page.get_by_text("Error at the end against evaluations")).to_be_visible(timeout=30_000)
    quiet(page)


def test_digits_emerge_from_noise_and_the_link_shows_the_same(server, page, new_page):
    open_app(page, f"{server}/sampler?field=shipped&samplers=%5B%7B%22solver%22%3A%22heun%22%2C%22steps%22%3A8%7D%5D")
    for step in range(1, 4):
        press(page, "One step on")
        until(page, lambda step=step: standing(page)[0] == step, f"step {step}")
    linked(page, "step=3")
    twin = open_app(new_page(), page.url)
    until(twin, lambda: standing(twin)[0] == 3, "the link's step")
    quiet(page)
    quiet(twin)


def test_a_run_is_taken_away_as_a_page_that_plays_and_as_a_script(server, page):
    open_app(page, f"{server}/sampler")
    for step in range(1, 4):
        press(page, "One step on")
        until(page, lambda step=step: standing(page)[0] == step, f"step {step}")
    script = download(page, "Python script").read_text()
    assert "wb.sampling(wb.exact_field('eight-gaussians'" in script
    html = download(page, "Page that plays").read_text()
    assert "<html" in html
    quiet(page)


def test_it_fits_a_phone(server, new_page):
    page = open_app(new_page(**PHONE), f"{server}/sampler")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    expect(page.get_by_role("button", name="Play or pause")).to_be_visible()
    quiet(page)
