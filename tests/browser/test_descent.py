"""The Descent app as a person uses it: play, slide, go back, branch, take away, share."""

import subprocess
import sys

from PIL import Image
from playwright.sync_api import expect

import workbench as wb
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
    until,
)


def test_it_plays_turns_while_it_plays_goes_back_and_branches(server, page):
    open_app(page, f"{server}/descent")
    press(page, "Play or pause")
    until(page, lambda: standing(page)[0] > 20, "the step to move")
    rate = page.get_by_role("slider", name="sgd lr")
    rate.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    until(page, lambda: standing(page)[0] > 60, "it to go on playing")
    press(page, "Play or pause")
    linked(page, "edits=")
    stood, head = standing(page)
    press(page, "One step back")
    until(page, lambda: standing(page) == (stood - 1, head), "one step back")
    press(page, "Branch")
    until(page, lambda: standing(page) == (stood - 1, stood - 1), "a line of time that ends here")
    expect(page.get_by_role("combobox", name="line")).to_contain_text("B")
    quiet(page)


def test_every_slider_and_box_has_a_name_of_its_own_and_tells_its_value(server, page):
    open_app(page, f"{server}/descent")
    sliders = page.get_by_role("slider")
    until(page, lambda: sliders.count() >= 9, "the step and eight sliders of three cards")
    names = [slider.get_attribute("aria-label") for slider in sliders.all()]
    assert {"sgd lr", "momentum lr", "adam lr"} <= set(names)
    assert len(set(names)) == len(names)
    for slider, name in zip(sliders.all(), names, strict=True):
        if name != "step":
            box = page.get_by_role("textbox", name=name, exact=True)
            assert box.input_value() == slider.get_attribute("aria-valuetext")
    rate = page.get_by_role("slider", name="adam lr")
    rate.press("ArrowRight")
    until(page, lambda: rate.get_attribute("aria-valuetext") == "0.207", "the slider to tell the rate")
    quiet(page)


def test_keys_on_the_picture_move_and_set_the_start(server, page):
    open_app(page, f"{server}/descent")
    picture = page.get_by_role("img", name="Rosenbrock").first
    picture.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    until(page, lambda: standing(page) == (3, 3), "three steps")
    page.keyboard.press("ArrowLeft")
    until(page, lambda: standing(page) == (2, 3), "one step back")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Enter")
    linked(page, "start=")
    until(page, lambda: standing(page) == (0, 0), "a new beginning")
    quiet(page)


def test_what_is_taken_away_is_right(server, new_page, tmp_path):
    page = open_app(new_page(), f"{server}/descent")
    play_to(page, 30)
    step = standing(page)[0]
    script = download(page, "Python script")
    code = script.read_text() + "\nprint('AT', session.index, session.state.parts[2].x.flatten().tolist())\n"
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    record = wb.record.xr.open_dataset(download(page, "Record"), engine="h5netcdf")
    assert record["step"].values[-1] == step
    at = record["x"].values[2, -1].tolist()
    assert f"AT {step} {at}" in ran.stdout
    with page.expect_download(timeout=TIMEOUT) as caught:
        press(page, "Picture (.png)")
    with Image.open(caught.value.path()) as picture:
        assert picture.format == "PNG"
        assert picture.width > 300
    (tmp_path / "run.html").write_bytes(download(page, "Page that plays").read_bytes())
    replay = open_app(new_page(), (tmp_path / "run.html").as_uri())
    replay.keyboard.press("End")
    quiet(page)
    quiet(replay)


def test_while_a_record_is_made_it_plays_on_and_cancel_ends_it(server, page):
    open_app(page, f"{server}/descent?step=4000")
    until(page, lambda: standing(page)[0] == 4000 and "replaying" not in said(page), "the step of the link")
    files = []
    page.on("download", lambda file: files.append(file.suggested_filename))
    record, cancel = page.get_by_role("button", name="Record"), page.get_by_role("button", name="Cancel").first
    expect(cancel).to_be_hidden()
    record.click()
    until(page, lambda: "making the record" in said(page), "progress")
    expect(record).to_be_disabled()
    expect(page.get_by_role("button", name="Page that plays")).to_be_disabled()
    press(page, "Play or pause")
    until(page, lambda: standing(page)[0] > 4020 and "making the record" in said(page), "it to play meanwhile")
    cancel.click()
    expect(page.get_by_text("Cancelled: the record was not made.")).to_be_visible(timeout=TIMEOUT)
    expect(record).to_be_enabled()
    press(page, "Play or pause")
    assert files == []
    for _ in range(2):
        assert b"rosenbrock" in download(page, "Python script").read_bytes()
    quiet(page)


def test_the_address_opens_the_same_step_and_two_visitors_do_not_see_each_other(server, new_page):
    page = open_app(new_page(), f"{server}/descent?surface=himmelblau")
    play_to(page, 15)
    stood, rate = standing(page), page.get_by_role("slider", name="sgd lr").get_attribute("aria-valuenow")
    other = open_app(new_page(), page.url)
    until(other, lambda: standing(other)[0] == stood[0], f"step {stood[0]} from the address")
    assert other.get_by_role("slider", name="sgd lr").get_attribute("aria-valuenow") == rate
    expect(other.get_by_role("combobox", name="Surface")).to_contain_text("Himmelblau")
    press(other, "Back to step 0")
    until(other, lambda: standing(other) == (0, 0), "step 0")
    assert standing(page) == stood
    quiet(page)
    quiet(other)


def test_a_wrong_expression_says_what_is_wrong_and_a_right_one_is_drawn(server, page):
    open_app(page, f"{server}/descent")
    box = page.get_by_label("Your own expression")
    box.fill("x**2 + zap(y)")
    box.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="zap")).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_role("img", name="Rosenbrock").first).to_be_visible()
    box.fill("x**2 + 3*y**2")
    box.press("Enter")
    linked(page, "surface=")
    expect(page.get_by_role("img", name="x**2 + 3*y**2").first).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_role("alert").filter(has_text="zap")).to_be_hidden()
    quiet(page)


def test_tabs_draw_and_the_heat_map_finishes(server, page):
    open_app(page, f"{server}/descent")
    page.get_by_role("tab", name="Fan").click()
    page.get_by_label("Show the fan").check()
    page.get_by_text("steps from step 0").first.wait_for(timeout=TIMEOUT)
    page.get_by_role("tab", name="Heat map").click()
    press(page, "Draw heat map")
    page.get_by_text("loss after 200 steps").first.wait_for(timeout=TIMEOUT)
    page.get_by_role("tab", name="About").click()
    page.get_by_text("Rosenbrock 1960").first.wait_for(timeout=TIMEOUT)
    quiet(page)


def test_a_phone_shows_it_all_without_scrolling_sideways(server, new_page):
    page = open_app(new_page(**PHONE), f"{server}/descent")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    press(page, "One step on")
    until(page, lambda: standing(page) == (1, 1), "one step")
    quiet(page)
