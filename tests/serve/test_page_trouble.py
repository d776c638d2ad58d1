"""The page where something is in the way: keys, rates, a gateway that goes and comes back."""

import hashlib
import re

import pytest
from browser import gateway, only_the_shipped_version, started, visiting
from playwright.sync_api import expect
from tiny_repository import write_version

KEY = "sp_" + "a" * 43
RED = "a red circle"


@pytest.fixture(scope="module")
def browser():
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def guarded(repository, tmp_path_factory):
    """A gateway that asks for a key, and gives each key one picture a second."""
    keys = tmp_path_factory.mktemp("page") / "keys.toml"
    keys.write_text(f'[keys.alice]\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
    keys.chmod(0o600)
    with gateway(repository, "--keys", keys, "--rate", "1/second") as (_, url):
        yield url


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """A repository with the shipped model and the tiny one."""
    folder = only_the_shipped_version(tmp_path_factory.mktemp("two"))
    write_version(folder)
    return folder


def picture(page, prompt: str):
    stage = page.get_by_role("region", name="Result")
    return stage.get_by_role("img", name=prompt, exact=True)


def unlock(page, key: str = KEY) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_label("API key").press("Enter")


def test_a_key_is_asked_for_where_it_is_needed_and_kept_for_the_tab_alone(browser, guarded):
    with visiting(browser, guarded, allowed="status of (401|429)") as page:
        field = page.get_by_label("API key")
        expect(field).to_have_accessible_description(re.compile("The gateway asks for a key"))
        page.get_by_label("Prompt").fill(RED)
        unlock(page, "sp_wrong")
        expect(field).to_have_accessible_description(re.compile("does not know this key"))
        unlock(page, "ключ")
        expect(field).to_have_accessible_description(re.compile("A key has no such characters"))
        unlock(page)
        expect(picture(page, RED)).to_be_visible()
        expect(field).to_have_accessible_description("Kept until this tab is closed.")
        page.reload()
        page.get_by_label("Prompt").fill(RED)
        expect(picture(page, RED)).to_be_visible()
        expect(field).to_be_hidden()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    with visiting(browser, guarded, allowed="status of 401") as page:
        expect(page.get_by_label("API key")).to_be_visible()


def test_a_key_does_not_stand_in_the_copied_command(browser, guarded):
    with visiting(browser, guarded, allowed="status of (401|429)") as page:
        page.get_by_label("Prompt").fill(RED)
        unlock(page)
        expect(picture(page, RED)).to_be_visible()
        page.get_by_role("button", name="Copy curl for seed").click()
        command = page.evaluate("navigator.clipboard.readText()")
        assert '-H "Authorization: Bearer $SINGLEPASS_KEY"' in command
        assert KEY not in command


def test_what_is_refused_for_now_is_asked_for_again_when_the_gateway_says(browser, guarded):
    with visiting(browser, guarded, allowed="status of (401|429)") as page:
        unlock(page)
        for words in range(5):  # also on a slow machine two of them fall into one second
            page.get_by_label("Prompt").fill(RED + words * " left")
            page.wait_for_timeout(50)
        status = page.get_by_role("status")
        expect(status).to_have_text(re.compile(r"alice.* Trying again in 1 s\."))
        expect(page.get_by_role("region", name="Result")).to_have_attribute("data-state", "stale")
        expect(picture(page, RED + 4 * " left")).to_be_visible()
        expect(status).to_be_empty()


def test_a_gateway_that_goes_is_missed_and_found_again(browser, two_models):
    gone = "ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET"
    with gateway(two_models) as (running, url), visiting(browser, url, allowed=gone) as page:
        page.get_by_label("Prompt").fill(RED)
        expect(picture(page, RED)).to_be_visible()
        running.kill()
        running.wait()
        page.get_by_label("Prompt").fill(f"{RED} left")
        expect(page.get_by_role("status")).to_have_text(
            re.compile(r"The gateway does not answer\. Trying again in [1-8] s\.")
        )
        with gateway(two_models, port=int(url.rpartition(":")[2])):
            expect(picture(page, f"{RED} left")).to_be_visible(timeout=20_000)
            expect(page.get_by_role("status")).to_be_empty()


def test_one_of_several_models_can_be_chosen(browser, two_models):
    with (
        gateway(two_models, "--model", "tiny,shapes", "--max-images", "3") as (_, url),
        visiting(browser, url) as page,
    ):
        model = page.get_by_label("Model")
        expect(model.locator("option")).to_have_text(["tiny/1", "shapes/1"])
        expect(model).to_have_value("tiny")
        page.get_by_label("Prompt").fill(RED)
        expect(page.locator("#served")).to_have_text("tiny/1")
        first = picture(page, RED).get_attribute("src")
        model.select_option("shapes")
        expect(page.locator("#served")).to_have_text("shapes/1")
        expect(picture(page, RED)).not_to_have_attribute("src", first)
        expect(page.get_by_label("Pictures", exact=True)).to_have_attribute("max", "3")


def test_a_version_that_is_published_meanwhile_is_used_and_offered(browser, tmp_path):
    write_version(tmp_path / "models")
    with (
        gateway(tmp_path / "models", "--reload-s", "0.2") as (_, url),
        visiting(browser, url) as page,
    ):
        page.get_by_label("Prompt").fill(RED)
        expect(page.locator("#served")).to_have_text("tiny/1")
        write_version(tmp_path / "new", version=2)
        (tmp_path / "new" / "tiny" / "2").rename(tmp_path / "models" / "tiny" / "2")
        dice, served = page.get_by_role("button", name="Another seed"), page.locator("#served")
        for _ in range(50):
            dice.click()
            page.wait_for_timeout(100)
            if served.text_content() == "tiny/2":
                break
        dice.click()
        expect(page.locator("#model option")).to_have_text("tiny/2")
        expect(served).to_have_text("tiny/2")
