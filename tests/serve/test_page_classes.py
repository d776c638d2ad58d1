"""The page on a class-conditional model, in the real Chromium: a number in place of the prompt."""

import httpx
import pytest
from browser import gateway, started, visiting
from class_repository import write_class_version
from playwright.sync_api import expect
from tiny_repository import write_version


@pytest.fixture(scope="module")
def browser():
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A gateway on a class-conditional and a text model; the first is the default."""
    root = tmp_path_factory.mktemp("page")
    write_class_version(root)
    write_version(root)
    with gateway(root, "--model", "things,tiny") as (_, address):
        yield address


@pytest.fixture
def page(browser, url):
    with visiting(browser, url) as opened:
        yield opened


def picture(page, name: str):
    stage = page.get_by_role("region", name="Result")
    return stage.get_by_role("img", name=name, exact=True)


def test_the_first_class_is_drawn_at_once_and_another_as_its_number_is_typed(page):
    expect(picture(page, "class 0")).to_be_visible()
    expect(page.get_by_label("Prompt")).to_be_hidden()
    expect(page.get_by_text("red", exact=True)).to_be_visible()
    page.get_by_label("Class").fill("1")
    expect(picture(page, "class 1")).to_be_visible()
    expect(page.get_by_text("Blue", exact=True)).to_be_visible()


def test_a_number_that_is_no_class_is_refused_at_the_field(browser, url):
    with visiting(browser, url, allowed="status of 422") as page:
        page.get_by_label("Class").fill("5")
        said = page.get_by_text("class_label is 5, things/1 has the classes 0 to 4")
        expect(said).to_be_visible()


def test_the_copied_command_names_the_class(page, url):
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_label("Class").fill("2")
    expect(picture(page, "class 2")).to_be_visible()
    button = page.get_by_role("button", name="Copy curl for seed 3").first
    expect(button).to_be_visible()
    command = button.get_attribute("title")
    assert '"class_label": 2' in command
    assert "prompt" not in command
    body = {"class_label": 2, "seed": 3, "size": "8x8", "format": "png", "model": "things/1"}
    assert httpx.post(f"{url}/generate", json=body).status_code == 200


def test_going_to_a_text_model_and_back_changes_the_field(page):
    expect(picture(page, "class 0")).to_be_visible()
    page.get_by_label("Model").select_option("tiny")
    expect(page.get_by_label("Class")).to_be_hidden()
    page.get_by_label("Prompt").fill("a red circle")
    expect(picture(page, "a red circle")).to_be_visible()
    page.get_by_label("Model").select_option("things")
    expect(picture(page, "class 0")).to_be_visible()
