"""The Training app as a person uses it: learn, explode, come back, branch; upload; take away; share."""

import re

import numpy as np
from playwright.sync_api import expect

import workbench as wb
from tests.browser.driving import PHONE, TIMEOUT, download, open_app, play_to, press, quiet, said, standing, until


def step(page):
    return standing(page)[0]


def accuracy(page):
    """Held-out accuracy as the picture's description says, in per cent."""
    words = page.get_by_role("img", name="Held-out samples").first.get_attribute("aria-label")
    found = re.search(r"accuracy ([\d.]+) %", words)
    return float(found.group(1)) if found else 0.0


def slide(page, name, keys):
    slider = page.get_by_role("slider", name=name).first
    slider.focus()
    for key in keys:
        page.keyboard.press(key)


def test_it_learns_digits_explodes_goes_back_and_trains_on_at_half_the_rate(server, page):
    open_app(page, f"{server}/training")
    press(page, "Play or pause")
    until(page, lambda: accuracy(page) > 90, "held-out accuracy above 90 %")
    slide(page, "lr", ["End"])
    until(page, lambda: "exploded" in said(page), "the run to stop by itself")
    expect(page.get_by_text("Go back 50 steps, then branch with half the rate")).to_be_visible(timeout=TIMEOUT)
    stood = step(page)
    press(page, "50 steps back")
    until(page, lambda: step(page) == stood - 50, "50 steps back")
    press(page, "Keep this line; a new one with lr / 2")
    expect(page.get_by_role("combobox", name="line")).to_contain_text("B")
    press(page, "Play or pause")
    until(page, lambda: step(page) > stood, "line B to pass the place of the explosion")
    until(page, lambda: accuracy(page) > 90, "held-out accuracy above 90 % again")
    expect(page.get_by_text("held-out, line A").first).to_be_attached()
    page.get_by_role("tab", name="Mistakes").click()
    expect(page.get_by_text(re.compile(r"\d+ of 359 held-out samples classified wrong"))).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("tab", name="Layers").click()
    expect(page.get_by_text("Norm of the full training gradient in each block").first).to_be_visible(timeout=TIMEOUT)
    quiet(page)


def test_curvature_of_the_past_and_the_loss_around_it_with_both_lines_of_time(server, page):
    open_app(page, f"{server}/training?step=400")
    until(page, lambda: step(page) == 400 and "replaying" not in said(page), "the step of the link")
    page.get_by_role("tab", name="Curvature").click()
    until(page, lambda: "curvature so far" in said(page), "the past to be measured")
    until(page, lambda: "curvature so far" not in said(page), "the past to have been measured")
    press(page, "Keep this line; a new one with lr / 2")
    page.get_by_role("tab", name="Slice").click()
    play_to(page, 500)
    expect(page.get_by_text(re.compile("digits, 1,438 training samples")).first).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_text("True loss, and the loss on the plane below it").first).to_be_visible(timeout=TIMEOUT)
    quiet(page)


def test_a_bad_file_is_answered_beside_its_button_and_a_good_one_is_learned_from(server, page, tmp_path):
    open_app(page, f"{server}/training")
    bad, good = tmp_path / "bad.csv", tmp_path / "good.csv"
    bad.write_text("a,b\n1,2\noops,3\n")
    x = np.random.default_rng(0).normal(size=(80, 2)).round(3)
    good.write_text("a,b,c\n" + "".join(f"{a},{b},{'up' if a > b else 'down'}\n" for a, b in x))
    press(page, "Play or pause")
    until(page, lambda: step(page) > 5, "some steps")
    chooser = page.locator("input[type=file]").first
    chooser.set_input_files(bad)
    expect(page.get_by_text(re.compile("bad.csv: expected .*'oops' in row 3, column 1"))).to_be_visible(timeout=TIMEOUT)
    at = step(page)
    until(page, lambda: step(page) > at, "the run to go on playing")
    chooser.set_input_files(good)
    answer = page.get_by_text("good.csv: 64 samples to train on, 16 held out, 2 inputs, 2 classes.")
    expect(answer).to_be_visible(timeout=TIMEOUT)
    until(page, lambda: step(page) == 0, "a new run")
    play_to(page, 30)
    assert "file" in page.url
    other = open_app(page.context.new_page(), page.url)
    expect(other.get_by_text("expected the file 'good.csv'")).to_be_visible(timeout=TIMEOUT)
    quiet(page)


def test_what_is_taken_away_is_right_and_a_link_reopens_the_same(server, page, new_page, tmp_path):
    open_app(page, f"{server}/training?step=20")
    until(page, lambda: step(page) == 20, "the step of the link")
    slide(page, "lr", ["ArrowRight"] * 5)
    until(page, lambda: "edits=" in page.url, "the edit in the address")
    page.get_by_role("img", name="Held-out samples").first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    at = 25
    until(page, lambda: step(page) == at and "step=25" in page.url, "five steps more")
    script = download(page, "Python script").read_text()
    assert re.search(r"session.step\(20\)\nsession.set\(lr=[\d.]+\)\nsession.step\(5\)", script)
    path = tmp_path / "record.nc"
    path.write_bytes(download(page, "Record (.nc)").read_bytes())
    import xarray as xr

    with xr.open_dataset(path, engine="h5netcdf") as record:
        assert record.sizes["step"] == at + 1
        assert float(record["heldout_loss"][0, -1]) < float(record["heldout_loss"][0, 0])
        assert record.attrs["method"] == "adam"
    html = tmp_path / "run.html"
    html.write_bytes(download(page, "Page that plays").read_bytes())
    alone = new_page()
    alone.context.set_offline(True)
    open_app(alone, html.as_uri())
    again = open_app(new_page(), page.url)
    until(again, lambda: step(again) == at, "the same step")
    counts = []
    for one in (page, again):
        one.get_by_role("tab", name="Mistakes").click()
        headline = one.get_by_text(re.compile(r"\d+ of 359 held-out samples classified wrong"))
        expect(headline).to_be_visible(timeout=TIMEOUT)
        counts.append(headline.inner_text())
    assert counts[0] == counts[1]
    for one in (page, alone, again):
        quiet(one)
    assert wb.__version__ in script


def test_on_a_phone_it_trains_and_nothing_reaches_beyond_the_width(server, new_page):
    page = open_app(new_page(**PHONE), f"{server}/training")
    press(page, "Play or pause")
    until(page, lambda: step(page) > 20, "some steps")
    press(page, "Play or pause")
    page.get_by_role("tab", name="Curves").scroll_into_view_if_needed()
    expect(page.get_by_text("Loss, mean per sample").first).to_be_visible(timeout=TIMEOUT)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    quiet(page)
