"""Settings from the environment and from overrides."""

import logging
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from serve.errors import SettingsError
from serve.settings import Settings


def test_defaults_need_no_environment():
    settings = Settings.from_environment()
    assert (settings.port, settings.model) == (8000, None)
    assert settings.repository == Path("model_repository")


def test_variables_are_read_and_overrides_come_before_them(monkeypatch):
    monkeypatch.setenv("SINGLEPASS_PORT", "9000")
    monkeypatch.setenv("SINGLEPASS_MAX_QUEUE", "12")
    settings = Settings.from_environment({"port": 9001, "model": None})
    assert (settings.port, settings.max_queue, settings.model) == (9001, 12, None)


def test_a_bad_variable_is_named_with_its_value_and_what_is_allowed(monkeypatch):
    monkeypatch.setenv("SINGLEPASS_PORT", "70000")
    with pytest.raises(SettingsError, match=r"^SINGLEPASS_PORT is '70000': .*65535$"):
        Settings.from_environment()


def test_a_bad_override_is_named_as_the_option_it_came_from():
    with pytest.raises(SettingsError, match=r"^--max-queue is '0': .*greater than or equal to 1$"):
        Settings.from_environment({"max_queue": 0})


def test_an_unknown_override_is_an_error():
    with pytest.raises(SettingsError, match="--prot is '1': extra inputs are not permitted"):
        Settings.from_environment({"prot": 1})


def test_a_misspelt_variable_is_said_to_be_ignored(monkeypatch, caplog):
    monkeypatch.setenv("SINGLEPASS_PROT", "9000")
    with caplog.at_level(logging.WARNING):
        assert Settings.from_environment().port == 8000
    assert "SINGLEPASS_PROT is ignored" in caplog.text


def test_a_queue_that_cannot_hold_one_request_is_refused():
    with pytest.raises(SettingsError, match=r"max_images is 8, allowed is at most max_queue \(4\)"):
        Settings.from_environment({"max_queue": 4})


def test_settings_are_frozen_and_described():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("address", ["triton:8001", "10.0.0.1:1", "[::1]:8001", "a-b.c_d:65535"])
def test_an_address_of_triton_is_a_host_and_a_port(address):
    assert Settings.from_environment({"triton": address}).triton == address


@pytest.mark.parametrize("address", ["", "triton", "triton:0", "http://t:1", "t:70000", "::1:80"])
def test_another_address_of_triton_is_refused_with_what_is_allowed(monkeypatch, address):
    monkeypatch.setenv("SINGLEPASS_TRITON", address)
    sentence = f"SINGLEPASS_TRITON is {address!r}: allowed is HOST:PORT, as in triton:8001"
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}$"):
        Settings.from_environment()
