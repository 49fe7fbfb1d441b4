"""`meddelinea push`, against a stand-in of the Hugging Face hub."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meddelinea.cli.main import main
from support.hub import TOKEN, Hub, files_of, stand_in
from support.tiny_models import write_model

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client warns of itself

NAME = "clinic/abdomen-mr"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def push(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `meddelinea push WORDS...`: exit code, stdout, stderr."""
    monkeypatch.setattr("logging.disable", lambda level: None)  # process-wide, so it would outlive the test

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["push", *map(str, words)])
        return (stop.value.code, *capsys.readouterr())

    return call


def test_push_makes_a_repository_and_says_how_to_use_it(
    hub: Hub, trained: Path, push: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, err = push(trained, NAME, "--private")
    assert (code, err) == (0, "")
    repository = hub.repositories[NAME]
    assert repository.private
    commit = repository.branches["main"]
    assert out.splitlines()[0] == f"{NAME}@{commit}: use it as --model {NAME}"
    assert out.splitlines()[1].startswith("licence: not stated; ")
    assert files_of(trained).items() <= repository.commits[commit].items()


def test_push_states_the_licence_of_the_model_card(
    hub: Hub, trained: Path, push: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = shutil.copytree(trained, tmp_path / "with-card")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    code, out, _ = push(folder, NAME)
    assert code == 0
    assert out.splitlines()[1] == "licence: cc-by-4.0"


@pytest.mark.parametrize("missing", ["labels.json", "dit/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_push_refuses_a_folder_that_is_no_complete_model(
    hub: Hub, trained: Path, push: Run, tmp_path: Path, missing: str
) -> None:
    folder = shutil.copytree(trained, tmp_path / "incomplete")
    (folder / missing).unlink()
    code, out, err = push(folder, NAME)
    assert (code, out) == (5, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hub.requests == []


@pytest.mark.parametrize("name", ["abdomen", "clinic/abdomen@v1", "clinic/", "./clinic"])
def test_push_refuses_what_is_no_name_of_a_repository(hub: Hub, trained: Path, push: Run, name: str) -> None:
    code, out, err = push(trained, name)
    assert (code, out) == (2, "")
    assert "is not a repository; expected owner/name" in err


def test_push_without_a_token_is_one_line(hub: Hub, trained: Path, push: Run) -> None:
    code, out, err = push(trained, NAME)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "set HF_TOKEN" in err
