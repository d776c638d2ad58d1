"""The file of keys: what may stand in it, how it is followed, and that it gives nothing away."""

import hashlib
import logging
import re
import tomllib

import pytest

from serve.errors import SettingsError
from serve.keys import KeyFile, find, make_key, read_keys

DIGEST = hashlib.sha256(b"sp_secret").hexdigest()
OTHER = hashlib.sha256(b"sp_other").hexdigest()
ALICE = f'[keys.alice]\nsha256 = "{DIGEST}"\n'


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(ALICE)
    path.chmod(0o600)
    return path


def test_a_key_is_made_once_and_its_lines_let_it_in(path):
    (key, lines), (again, _) = make_key("bob"), make_key("bob")
    path.write_text(ALICE + lines + make_key("with.dot")[1])
    assert re.fullmatch(r"sp_[A-Za-z0-9_-]{43}", key)
    assert key != again
    assert key not in path.read_text()
    assert find(read_keys(path), key.encode()).name == "bob"
    assert find(read_keys(path), again.encode()) is None
    assert [key.name for key in read_keys(path)] == ["alice", "bob", "with.dot"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "sp_secret", "ü", "a" * 65, 'a"b', "a\n"])
def test_a_name_that_cannot_stand_in_a_log_is_refused(name):
    with pytest.raises(
        SettingsError,
        match=r" of the new key (is no name of a key, allowed are 1 to 64|begins with sp_)",
    ):
        make_key(name)


def test_a_key_may_have_a_rate_and_a_priority(path):
    path.write_text(ALICE + 'rate = "600/minute"\npriority = "batch"\n')
    (key,) = read_keys(path)
    assert (key.name, key.rate.amount, key.priority) == ("alice", 600, "batch")
    path.write_text(ALICE)
    (key,) = read_keys(path)
    assert (key.rate, key.priority) == (None, None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r"hold no key: allowed are tables \[keys.NAME\]$"),
        ("keys = 3", r"hold no key: allowed are tables"),
        ("[keys]", r"hold no key: allowed are tables"),
        (ALICE + "[users.bob]", r"have 'users', allowed is \[keys.NAME\]$"),
        ("[keys.sp_secret]", "a name in .* begins with sp_: is that the key itself"),
        ("[keys.alice", r"are not TOML: .*\(at .*\)$"),
        (ALICE + ALICE, r"are not TOML: .*\(at line 3, column 12\)$"),
        ("[keys]\nalice = 3", r"keys.alice in .* is no table"),
        ("[keys.alice]", "sha256 of keys.alice in .* must be 64 hexadecimal digits, quoted"),
        ('[keys.a]\nsha256 = "sp_secret"', "sha256 of keys.a in .* must be 64 hexadecimal digits"),
        (ALICE + 'key = "sp_secret"', "has 'key', allowed are: sha256, rate, priority"),
        (ALICE + "rate = 600", "rate of keys.alice in .* is 600, allowed is text as in"),
        (ALICE + 'rate = "much"', "rate of keys.alice in .* is 'much', allowed are such as"),
        (ALICE + 'priority = "high"', "is 'high', allowed are: interactive, batch"),
        (ALICE + "priority = []", r"is \[\], allowed are: interactive, batch"),
        ('[keys."a b"]', "the name 'a b' in .* is no name of a key, allowed are"),
        (ALICE + f'[keys.b]\nsha256 = "{DIGEST}"', "keys.alice and keys.b in .* are the same key"),
    ],
)
def test_a_broken_file_is_refused_with_what_is_wrong(path, content, sentence):
    path.write_text(content)
    with pytest.raises(SettingsError, match=sentence) as told:
        KeyFile(path)
    assert "sp_secret" not in str(told.value)
    assert "keys" in str(told.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(path, tmp_path):
    with pytest.raises(SettingsError, match=r"none\.toml cannot be read: No such file"):
        KeyFile(tmp_path / "none.toml")
    path.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="are not UTF-8"):
        KeyFile(path)


def test_a_change_is_followed_and_only_a_change_is_read(path, caplog):
    file = KeyFile(path)
    with caplog.at_level(logging.INFO):
        file.look()
        assert not caplog.records
        path.write_text(f'[keys.bob]\nsha256 = "{OTHER}"\n')
        file.look()
        file.look()
    assert [key.name for key in file.keys] == ["bob"]
    assert caplog.text.count("1 keys are let in, as ") == 1


def test_a_file_is_followed_as_kubernetes_changes_a_mounted_secret(tmp_path):
    """The file is a link into a folder that is a link, and only that one is replaced."""

    def mount(stamp: str, content: str) -> None:
        (tmp_path / stamp).mkdir()
        (tmp_path / stamp / "keys").write_text(content)
        (tmp_path / "new").symlink_to(stamp)
        (tmp_path / "new").replace(tmp_path / "..data")

    (tmp_path / "keys").symlink_to("..data/keys")
    mount("..1", ALICE)
    file = KeyFile(tmp_path / "keys")
    mount("..2", ALICE.replace("alice", "carol"))  # as long as the one before
    file.look()
    assert [key.name for key in file.keys] == ["carol"]


@pytest.mark.parametrize("change", [lambda p: p.write_text("[keys"), lambda p: p.unlink()])
def test_a_broken_change_leaves_the_old_keys_in_force_and_is_logged_once(path, caplog, change):
    file = KeyFile(path)
    change(path)
    file.look()
    file.look()
    assert find(file.keys, b"sp_secret").name == "alice"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the keys stay as they were: the keys {path} ")
    path.write_text(ALICE + "# mended\n" + f'[keys.bob]\nsha256 = "{OTHER}"\n')
    file.look()
    assert find(file.keys, b"sp_other").name == "bob"


def test_a_file_that_everybody_can_read_is_warned_about_once(path, caplog):
    KeyFile(path).look()
    assert "can read" not in caplog.text
    path.chmod(0o644)
    file = KeyFile(path)
    path.write_text(ALICE + "\n")
    file.look()
    assert caplog.text.count("everybody on this machine can read the keys") == 1


def test_every_key_is_compared_whichever_was_given(monkeypatch, path):
    compared = []

    def compare(one, other):
        compared.append(one)
        return one == other

    path.write_text(ALICE + f'[keys.bob]\nsha256 = "{OTHER}"\n')
    keys = read_keys(path)
    monkeypatch.setattr("serve.keys.hmac.compare_digest", compare)
    for given in (b"sp_secret", b"sp_other", b"none"):
        find(keys, given)
    assert compared == [key.digest for key in keys] * 3


def test_what_is_made_is_toml_with_the_hash_alone():
    key, lines = make_key("bob")
    table = tomllib.loads(lines)["keys"]["bob"]
    assert table == {"sha256": hashlib.sha256(key.encode()).hexdigest()}
