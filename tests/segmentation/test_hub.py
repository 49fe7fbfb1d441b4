"""Models on the Hugging Face hub, against a stand-in that answers on this computer: nothing here leaves it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from meddelinea import load_model
from meddelinea.errors import MedDelineaError, UsageError, WeightsMissingError
from meddelinea.segmentation.hub import HubModel
from meddelinea.segmentation.model import model_folder, read_model_files
from support.hub import TOKEN, Hub, Repository, files_of, stand_in
from support.tiny_models import write_model

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client warns of itself

NAME = "clinic/abdomen-mr"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("trained"))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Abdomen\n")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in(tmp_path, monkeypatch) as running:
        yield running


def test_a_model_of_the_hub_is_the_one_that_was_put_there(hub: Hub, trained: Path) -> None:
    commit = hub.add(NAME, trained)
    model = load_model(NAME, "cpu")
    assert model.files.name == f"{NAME}@{commit}"
    assert model.files.licence == "cc-by-4.0"
    ours, theirs = load_model(trained, "cpu").pipeline, model.pipeline
    for name in ("codec", "dit", "control", "mask_head"):
        for key, value in getattr(ours, name).state_dict().items():
            assert torch.equal(getattr(theirs, name).state_dict()[key], value), key


def test_what_was_downloaded_is_not_downloaded_again(hub: Hub, trained: Path) -> None:
    hub.add(NAME, trained)
    first = model_folder(NAME)
    assert sorted(hub.downloads()) == sorted(files_of(trained))
    hub.requests.clear()
    assert model_folder(NAME) == first
    assert hub.downloads() == []


def test_without_the_hub_its_cache_serves_also_when_a_commit_is_named(hub: Hub, trained: Path) -> None:
    commit = hub.add(NAME, trained)
    folder = model_folder(NAME)
    hub.close()
    assert model_folder(NAME) == folder
    assert model_folder(f"{NAME}@{commit}") == folder
    assert model_folder(read_model_files(NAME).name) == folder


def test_offline_by_setting_asks_nobody(hub: Hub, trained: Path) -> None:
    """In a process of its own: the hub's client reads its settings once."""
    commit = hub.add(NAME, trained)
    model_folder(NAME)
    hub.requests.clear()

    program = (
        "import sys; from meddelinea.cli.main import main\n"
        "for name in sys.argv[1:]:\n"
        "    try: main(['info', name, '--json'])\n"
        "    except SystemExit as end: print('exit', end.code, flush=True)"
    )
    command = [sys.executable, "-c", program, NAME, "other/model"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    found, ended, missing = done.stdout.partition("exit 0\n")
    assert ended, done.stderr
    assert json.loads(found)["model"]["name"] == f"{NAME}@{commit}"
    assert missing == "exit 5\n"
    assert done.stderr.count("\n") == 1
    assert "error: other/model: no such folder here, the Hugging Face hub cannot be reached" in done.stderr
    assert hub.requests == []


def test_an_unreachable_hub_without_a_cached_model_is_one_line(hub: Hub) -> None:
    hub.close()
    with pytest.raises(WeightsMissingError, match="the Hugging Face hub cannot be reached, and its cache does not"):
        load_model(NAME, "cpu")


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, trained: Path) -> None:
    first = hub.add(NAME, trained)
    changed = {**files_of(trained), "README.md": b"---\nlicense: mit\n---\n"}
    second = hub.repositories[NAME].commit(changed)
    hub.repositories[NAME].branches["v1"] = first
    assert read_model_files(NAME).licence == "mit"
    assert read_model_files(NAME).name == f"{NAME}@{second}"
    for revision in ("v1", first):
        assert read_model_files(f"{NAME}@{revision}").licence == "cc-by-4.0"
    with pytest.raises(WeightsMissingError, match=f"{NAME}@v2: the repository has no branch, tag or commit 'v2'"):
        read_model_files(f"{NAME}@v2")


def test_a_licence_cannot_steer_the_terminal(hub: Hub, trained: Path) -> None:
    hub.repositories[NAME] = Repository()
    card = "---\nlicense: mit\x1b[2J\x07" + "x" * 1000 + "\n---\n"
    hub.repositories[NAME].commit({**files_of(trained), "README.md": card.encode()})
    licence = read_model_files(NAME).licence
    assert licence == ("mit[2J" + "x" * 1000)[:100]


def test_a_folder_of_that_name_wins_and_the_hub_is_not_asked(hub: Hub, trained: Path) -> None:
    hub.add(NAME, trained)
    shutil.copytree(trained, NAME)
    files = read_model_files(NAME)
    assert (files.name, files.folder) == ("abdomen-mr", Path(NAME))
    shutil.rmtree(NAME)
    Path(NAME).mkdir()
    with pytest.raises(WeightsMissingError, match=r"no model_index\.json in clinic/abdomen-mr"):
        read_model_files(NAME)
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["small", "./clinic/abdomen", "/clinic/abdomen", "clinic/", "a/b/c", "a/b@", "..", "../b", "a/.."]
)
def test_other_names_are_not_asked_of_the_hub(name: str) -> None:
    assert HubModel.parse(name) is None


def test_private_and_gated_models_ask_for_a_token(hub: Hub, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("clinic/private", trained, private=True)
    hub.add("clinic/gated", trained, gated=True)
    with pytest.raises(WeightsMissingError, match=r"clinic/private: .*no such repository.*HF_TOKEN if it is private"):
        load_model("clinic/private", "cpu")
    with pytest.raises(WeightsMissingError, match=r"clinic/gated: access is granted by its owner; .* set HF_TOKEN"):
        load_model("clinic/gated", "cpu")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("clinic/private", "clinic/gated"):
        assert load_model(name, "cpu").files.labels


def test_of_a_malicious_repository_only_json_and_safetensors_arrive(hub: Hub, trained: Path) -> None:
    malicious = {
        "codec/diffusion_pytorch_model.bin": b"\x80\x04pickle",
        "dit/pytorch_model.pt": b"\x80\x04pickle",
        "pipeline.py": b"raise SystemExit('ran')",
        "control/modeling.py": b"raise SystemExit('ran')",
        "weights.safetensors.pkl": b"\x80\x04pickle",
    }
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({**files_of(trained), **malicious})
    model = load_model(NAME, "cpu")
    assert sorted(hub.downloads()) == sorted(files_of(trained))
    assert not [
        path for path in model.files.folder.rglob("*") if path.suffix not in (".json", ".safetensors", ".md", "")
    ]


@pytest.mark.parametrize("path", ["../../../../escaped.json", "dit/../../../../../escaped.json"])
def test_a_path_that_leads_out_of_the_cache_is_refused(hub: Hub, trained: Path, tmp_path: Path, path: str) -> None:
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({**files_of(trained), path: b"{}"})
    with pytest.raises(WeightsMissingError, match=f"^{NAME}: "):
        load_model(NAME, "cpu")
    assert not list(tmp_path.rglob("escaped.json"))


def test_a_component_of_another_library_is_refused_before_it_is_imported(
    hub: Hub, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_library.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    files = files_of(trained)
    index = {**json.loads(files["model_index.json"]), "dit": ["foreign_library", "DiT"]}
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({**files, "model_index.json": json.dumps(index).encode()})
    with pytest.raises(WeightsMissingError, match="component dit is of foreign_library; expected meddelinea or diff"):
        load_model(NAME, "cpu")


def test_a_repository_without_a_model_is_refused_as_a_folder_is(hub: Hub, trained: Path) -> None:
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({"README.md": b"# Nothing yet"})
    with pytest.raises(
        WeightsMissingError, match=r"no model_index\.json in .*; expected a model that MedDelinea saved"
    ):
        read_model_files(NAME)
    files = files_of(trained)
    del files["labels.json"]
    hub.repositories[NAME].commit(files)
    with pytest.raises(WeightsMissingError, match="not a complete model"):
        read_model_files(NAME)


def test_what_was_uploaded_is_what_is_downloaded(
    hub: Hub, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "folder"
    shutil.copytree(trained, folder)
    (folder / "notes.txt").write_text("patient names")
    (folder / "optimiser.pt").write_bytes(b"pickle")
    made = HubModel(NAME, None).upload(folder)
    assert made == HubModel(NAME, hub.repositories[NAME].branches["main"])
    assert not hub.repositories[NAME].private
    downloaded = files_of(model_folder(str(made)))
    assert downloaded == files_of(trained)


def test_a_private_upload_is_private_or_refused(hub: Hub, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    HubModel(NAME, None).upload(trained, private=True)
    assert hub.repositories[NAME].private
    before = hub.add("clinic/public", trained)
    with pytest.raises(UsageError, match="clinic/public: exists and is public"):
        HubModel("clinic/public", None).upload(trained, private=True)
    assert list(hub.repositories["clinic/public"].commits) == [before]


def test_an_upload_that_the_hub_refuses_or_does_not_get_is_one_line(hub: Hub, trained: Path) -> None:
    with pytest.raises(UsageError, match=rf"{NAME}: the hub refuses the upload \(.*401.*\); set HF_TOKEN"):
        HubModel(NAME, None).upload(trained)
    hub.close()
    with pytest.raises(MedDelineaError, match=rf"{NAME}: not uploaded \("):
        HubModel(NAME, None).upload(trained)
