"""Who may come in: passwords and keys from files or the environment."""

import pytest

from sst_ui import app
from sst_ui.errors import UserError


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """`settings(**files)`: the program's settings with these files of secrets."""
    for name in ("SST_AUTH", "SST_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sst_ui.cli.address.check", lambda host, port: 7860)

    def made(**files):
        arguments = []
        for name, text in files.items():
            path = tmp_path / name
            path.write_text(text, encoding="utf-8")
            arguments += [f"--{name.replace('_', '-')}", str(path)]
        return app.settings(arguments)

    return made


def test_nobody_signs_in_unless_asked_to(settings):
    assert settings().people is None
    assert settings().keys == ()


def test_a_name_goes_with_its_own_password(settings):
    belongs = settings(auth="ada:correct horse\n\nbert:with:colons\n").people
    assert belongs("ada", "correct horse")
    assert belongs("bert", "with:colons")
    for name, password in (("ada", "with:colons"), ("ada", ""), ("eve", ""), ("", "")):
        assert not belongs(name, password)


def test_keys_are_lines_and_a_space_keeps_both_in_its_environment(settings, monkeypatch):
    assert settings(api_keys="first-key\nsecond-key\n").keys == ("first-key", "second-key")
    monkeypatch.setenv("SST_API_KEYS", "third-key,fourth-key")
    monkeypatch.setenv("SST_AUTH", "ada:correct horse")
    assert settings().keys == ("third-key", "fourth-key")
    assert settings().people("ada", "correct horse")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"auth": ""}, "has no line"),
        ({"api_keys": "\n \n"}, "has no line"),
        ({"auth": "ada correct horse"}, "line 1 is not NAME:PASSWORD"),
        ({"auth": "ada:long enough\nada:other one"}, "line 2 is not NAME:PASSWORD"),
        ({"auth": "ada:short"}, "fewer than 8"),
        ({"api_keys": "long enough\nshort"}, "line 2 has fewer than 8"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(settings, files, says):
    with pytest.raises(UserError, match=says) as told:
        settings(**files)
    assert "correct horse" not in str(told.value)
    assert "other one" not in str(told.value)


def test_a_file_that_is_not_there_is_no_open_door(settings, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        app.settings(["--auth", str(tmp_path / "nowhere")])
