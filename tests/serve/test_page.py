"""The page in the real Chromium, on the real gateway with the model that lies in the repository."""

import io
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import gateway, only_the_shipped_version, slow_gateway, started, visiting
from PIL import Image
from playwright.sync_api import expect

BLUE = "a large blue square on the right"
QUOTED = """a 'small' "red" circle, $HOME `on` \\ the left, été"""


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A gateway on the shipped model."""
    with gateway(only_the_shipped_version(tmp_path_factory.mktemp("page"))) as (_, address):
        yield address


@pytest.fixture(scope="module")
def browser():
    with started() as running:
        yield running


@pytest.fixture
def page(browser, url):
    with visiting(browser, url) as opened:
        yield opened


def picture(page, prompt: str, **options):
    """The picture on the stage whose alternative text is the prompt."""
    stage = page.get_by_role("region", name="Result")
    return stage.get_by_role("img", name=prompt, exact=True, **options)


def ask_for(page, prompt: str, seed: int = 1, **fields: str) -> None:
    """Set fields, type the prompt, and wait for its picture with that seed."""
    page.get_by_label("Seed", exact=True).fill(str(seed))
    for label, value in fields.items():
        field = page.get_by_label(label, exact=True)
        field.select_option(value) if label == "Format" else field.fill(value)
    page.get_by_label("Prompt").fill(prompt)
    expect(picture(page, prompt).first).to_be_visible()
    expect(seed_shown(page)).to_have_text(f"seed {seed}")


def seed_shown(page):
    """The fact under the first picture that names its seed."""
    return page.locator(".facts").first.locator("span").nth(1)


def saved(page, index: int = 0) -> tuple[str, bytes]:
    """Name and bytes of the file that the link Save gives."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Save").nth(index).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def copied(page, button) -> str:
    button.click()
    expect(button).to_have_text("Copied")
    return page.evaluate("navigator.clipboard.readText()")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def kept(page):
    """The entries of the history."""
    return page.get_by_role("region", name="History").get_by_role("listitem")


def test_typing_gives_the_picture_that_the_words_say(page, shapes):
    page.get_by_label("Seed", exact=True).fill("1")
    page.get_by_label("Prompt").click()
    page.keyboard.type(BLUE, delay=15)
    expect(picture(page, BLUE)).to_be_visible()
    name, data = saved(page)
    assert name == "1.png"
    assert shapes.judge.right(BLUE, pixels(data))


def test_typing_fast_leaves_only_the_newest(page, url):
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_label("Prompt").click()
    page.keyboard.type(BLUE)
    expect(picture(page, BLUE)).to_be_visible()
    expect(kept(page)).to_have_count(1)
    direct = httpx.post(f"{url}/generate", json={"prompt": BLUE, "seed": 3, "model": "shapes/1"})
    assert saved(page)[1] == direct.content


def test_what_is_overtaken_is_given_up_on_both_sides(browser, repository, tmp_path):
    release = tmp_path / "release"
    with (
        slow_gateway(repository, release) as (running, address),
        visiting(browser, address) as page,
    ):
        failed = []
        page.on("requestfailed", lambda request: failed.append(request.failure))
        page.keyboard.type("a red")
        assert running.stdout.readline() == "accepted\n"
        page.keyboard.type(" circle")
        expect(page.get_by_role("region", name="Result")).to_have_attribute("aria-busy", "true")
        release.touch()
        expect(picture(page, "a red circle")).to_be_visible()
        left = httpx.get(f"{address}/metrics").text
        assert failed
        assert {*failed} == {"net::ERR_ABORTED"}
        assert re.search(r'requests_total\{.*"/generate",status="499"\} [1-9]', left)


@needs_curl
def test_the_copied_command_gives_these_very_bytes(page, tmp_path):
    ask_for(page, QUOTED, seed=2**64 - 1, Format="webp")
    expect(kept(page)).to_have_count(1)
    name, shown = saved(page)
    for button in page.get_by_role("button", name="Copy curl").all():
        subprocess.run(["sh", "-c", copied(page, button)], cwd=tmp_path, check=True)
        assert (tmp_path / name).read_bytes() == shown
        (tmp_path / name).unlink()
    assert name == "18446744073709551615.webp"
    assert shown[8:12] == b"WEBP"


@needs_curl
def test_one_command_gives_all_pictures_of_several(page, tmp_path):
    ask_for(page, QUOTED, seed=2**60, Pictures="4")
    expect(picture(page, QUOTED)).to_have_count(4)
    command = copied(page, kept(page).get_by_role("button", name="Copy curl"))
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    for index in range(4):
        name, shown = saved(page, index)
        assert name == f"{2**60 + index}.png"
        assert (tmp_path / name).read_bytes() == shown
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 4


def test_the_history_brings_all_settings_back_without_a_request(page):
    ask_for(page, "a small red circle on the left", seed=5, Pictures="2", Format="jpeg")
    expect(kept(page)).to_have_count(1)
    expect(picture(page, "a small red circle on the left")).to_have_count(2)
    first = saved(page, 1)
    page.get_by_label("Prompt").fill("")
    ask_for(page, BLUE, seed=6, Pictures="1", Format="png")
    expect(kept(page)).to_have_count(2)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    kept(page).get_by_role("button", name="a small red circle on the left, seed 5").click()
    expect(picture(page, "a small red circle on the left")).to_have_count(2)
    assert saved(page, 1) == first
    form = page.locator("form")
    values = {name: form.locator(f"#{name}").input_value() for name in ("seed", "format")}
    assert values == {"seed": "5", "format": "jpeg"}
    assert form.locator("#num_images").input_value() == "2"
    assert [one for one in asked if not one.startswith("blob:")] == []


def test_a_bad_seed_is_explained_at_its_field_and_goes_when_it_is_right(browser, url):
    with visiting(browser, url, allowed="status of 422") as page:
        page.get_by_label("Prompt").fill(BLUE)
        seed = page.get_by_label("Seed", exact=True)
        seed.fill("-1")
        expect(seed).to_have_accessible_description(re.compile("seed is -1: .* greater than or"))
        expect(seed).to_have_attribute("aria-invalid", "true")
        seed.fill("two")
        expect(seed).to_have_accessible_description(re.compile("seed is 'two': .*integer"))
        seed.fill("7")
        expect(seed).to_have_accessible_description("")
        expect(seed_shown(page)).to_have_text("seed 7")


def test_the_stages_add_up_to_the_round_trip(page):
    ask_for(page, BLUE)
    time = page.get_by_role("region", name="Time")
    stages = ["queue", "tokenize", "infer", "encode", "gateway", "network"]
    expect(time.get_by_role("term")).to_have_text(stages)
    total = float(re.match(r"([\d.]+) ms", time.get_by_role("heading").text_content())[1])
    parts = [float(text.split()[0]) for text in time.get_by_role("definition").all_text_contents()]
    assert sum(parts) == pytest.approx(total, abs=5)
    assert parts[2] > 1


def test_small_pictures_are_enlarged_by_a_whole_factor_and_say_so(page):
    ask_for(page, BLUE)
    box = picture(page, BLUE).bounding_box()
    assert (box["width"], box["height"]) == (576, 576)
    expect(page.locator(".facts")).to_contain_text("64 × 64 px at 9×")
    expect(picture(page, BLUE)).to_have_css("image-rendering", "pixelated")


@pytest.mark.parametrize("width_px", [320, 390, 760, 761])
def test_nothing_is_wider_than_the_screen(browser, url, width_px):
    with visiting(browser, url, "status of 422", width_px) as page:
        wide = "document.documentElement.scrollWidth"
        assert page.evaluate(wide) == width_px
        ask_for(page, f"{BLUE} and {'m' * 60}", seed=2**32, Pictures="4")
        expect(kept(page)).to_have_count(1)
        assert page.evaluate(wide) == width_px
        page.get_by_label("Seed", exact=True).fill("x" * 50)
        expect(page.locator("#seed-problem")).to_be_visible()
        assert page.evaluate(wide) == width_px


def test_everything_works_by_keyboard(page):
    press = page.keyboard.press
    page.keyboard.type(BLUE)
    press("Tab")
    page.keyboard.type("1")  # instead of what stood there
    expect(seed_shown(page)).to_have_text("seed 1")
    press("Tab")
    press("Space")
    expect(seed_shown(page)).not_to_have_text("seed 1")
    for key in ("Tab", "ArrowUp", "Tab", "j", "Tab"):  # two pictures, in JPEG
        press(key)
    expect(picture(page, BLUE)).to_have_count(2)
    expect(kept(page)).not_to_have_count(0)
    for _ in range(5):  # size, then Save and Copy of each picture
        press("Tab")
    focused = page.locator(":focus")
    expect(focused).to_have_attribute("aria-label", re.compile(f"{BLUE}, seed .*2 pictures"))
    expect(focused).to_have_css("outline-style", "solid")
    with page.expect_download() as download:
        for key in ("Shift+Tab", "Shift+Tab", "Enter"):
            press(key)
    assert download.value.suggested_filename.endswith(".jpeg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, url, scheme):
    with visiting(browser, url, "status of 422", color_scheme=scheme) as page:
        ask_for(page, BLUE)
        page.get_by_label("Seed", exact=True).fill("two")
        expect(page.locator("#seed-problem")).to_be_visible()
        ink = "e => getComputedStyle(e).color"
        paper = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
        assert luminance(paper) > 0.8 if scheme == "light" else luminance(paper) < 0.05
        for place in ("body", "label >> nth=0", "a >> nth=0", "dt >> nth=0", "#seed-problem"):
            assert contrast(page.locator(place).evaluate(ink), paper) >= 4.5, place


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two CSS colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of rgb(r, g, b)."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    "script",
    [
        "fetch('http://example.invalid/').catch(() => null)",
        "document.body.append(Object.assign(document.createElement('script'), {text: 'x = 1'}))",
    ],
)
def test_what_the_policy_forbids_is_refused_and_seen(browser, url, script):
    policy = pytest.raises(AssertionError, match="Content Security Policy")
    with policy, visiting(browser, url) as page:
        page.evaluate(script)
