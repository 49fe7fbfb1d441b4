"""`meddelinea serve`: what it refuses, and when it demands a token. The server itself starts and stops at once."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from meddelinea.cli.main import main
from meddelinea.cli.serve import _home
from meddelinea.errors import UsageError

Start = Callable[..., tuple[int, str, str]]


@pytest.fixture
def start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """Run `meddelinea serve WORDS...` until it would wait for requests: exit code, stdout, stderr."""
    monkeypatch.setattr("logging.disable", lambda level: None)
    monkeypatch.setattr("meddelinea.cli.serve._log_to_stderr", lambda: None)

    def run(server: uvicorn.Server, sockets: object) -> None:
        with TestClient(server.config.app):
            pass

    monkeypatch.setattr(uvicorn.Server, "run", run)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["serve", "--port", "0", "--folder", str(tmp_path / "jobs"), *words])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return call


def test_this_computer_alone_needs_no_token(start: Start) -> None:
    code, out, err = start()
    assert (code, err) == (0, "")
    assert re.search(r"http://127\.0\.0\.1:\d+/\n", out)


@pytest.mark.parametrize("words", [("--host", "0.0.0.0"), ("--allow-host", "viewer.hospital")])
def test_others_demand_a_token_that_is_printed_once(start: Start, words: tuple[str, ...]) -> None:
    code, out, _ = start(*words)
    assert code == 0
    tokens = re.findall(r"#token=([\w-]{40,})\n", out)
    assert len(tokens) == 1
    assert len(re.findall(tokens[0], out)) == 1


def test_a_token_that_is_given_is_not_printed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a-token-of-some-length" not in start("--host", "0.0.0.0", "--token", "a-token-of-some-length")[1]
    monkeypatch.setenv("MEDDELINEA_TOKEN", "another-of-some-length")
    out = start("--host", "0.0.0.0")[1]
    assert "#token" not in out


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--token", "short"), 2, "expected at least 16"),
        (("--model", "absent"), 5, "absent"),
        (("--host", "203.0.113.7"), 2, "cannot listen on 203.0.113.7"),
        (("--dicomweb", "file:///etc"), 2, "not an address"),
        (("--port", "70000"), 2, "65535"),
    ],
)
def test_bad_options_are_one_clear_line(start: Start, words: tuple[str, ...], code: int, reason: str) -> None:
    found, out, err = start(*words)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err


def test_a_missing_package_is_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> Any:
        return None if name == "uvicorn" else name

    monkeypatch.setattr("meddelinea.cli.serve.find_spec", find_spec)
    code, _, err = start()
    assert code == 2
    assert "pip install 'meddelinea[serve]'" in err


@pytest.mark.parametrize("home", ["", "~", "relative"])
def test_a_user_without_a_home_is_asked_for_a_folder(
    home: str, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["meddelinea"])
    with pytest.raises(UsageError, match="no home folder to keep jobs in") as caught:
        _home()
    assert caught.value.parameter == "folder"
    assert start()[0] == 0  # with a folder
    assert not (tmp_path / home / ".config").exists()
