"""Models on the Hugging Face hub: downloaded into its cache, and uploaded from a folder.

`huggingface_hub` does the work, so that access tokens, cache and address are those of everything else that uses it:
HF_TOKEN or `hf auth login`, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE. A repository holds what a model's folder holds,
and no other kind of file is downloaded or uploaded: nothing that would have to be unpickled or run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from meddelinea.errors import MedDelineaError, UsageError, WeightsMissingError, reason_of
from meddelinea.version import __version__

#: The files of a model, in its folder and in the folders of its components.
FILES = ("*.json", "*.safetensors", "README.md")

_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.][\w./-]*))?", re.ASCII)


class HubModel(NamedTuple):
    """A repository on the hub, and the branch, tag or commit meant; None for its main branch."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, name: str) -> HubModel | None:
        """What `owner/name` or `owner/name@revision` names; None where `name` has another form."""
        found = _NAME.fullmatch(name)
        return None if found is None else cls(found["repository"], found["revision"])

    @classmethod
    def of_folder(cls, folder: Path) -> HubModel | None:
        """Which repository at which commit a folder of the hub's cache holds; None for any other folder."""
        *_, repository, snapshots, commit = ("", "", *folder.parts)
        kind, *names = repository.split("--", 2)
        if kind != "models" or len(names) != 2 or snapshots != "snapshots":
            return None
        return cls("/".join(names), commit)

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    def download(self) -> Path:
        """Its folder in the hub's cache, downloaded where that is not up to date.

        Where the hub cannot be reached, what was downloaded before is taken.

        Raises
        ------
        WeightsMissingError
            If there is no such repository or revision, it may not be read, or the hub cannot be reached and the cache
            does not hold all of it.
        """
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(
                self.repository,
                revision=self.revision,
                allow_patterns=list(FILES),
                library_name="meddelinea",
                library_version=__version__,
            )
        except Exception as error:  # the hub's own, those of its HTTP client, and the operating system's
            raise WeightsMissingError(f"{self}: {self._why_absent(error)}") from error
        return Path(folder)

    def upload(self, folder: Path, private: bool = False) -> HubModel:
        """Commit the files of a model's folder to the repository's main branch; the repository is made if absent.

        Parameters
        ----------
        folder
            A complete model: who calls this has loaded it.
        private
            Whether only its owner may read the repository.

        Returns
        -------
        HubModel
            The repository at the commit made.

        Raises
        ------
        UsageError
            If the hub refuses it, or a private repository was asked for and there is a public one.
        MedDelineaError
            If the hub cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(library_name="meddelinea", library_version=__version__)
        try:
            api.create_repo(self.repository, private=private, exist_ok=True)
            if private and not api.model_info(self.repository).private:
                raise UsageError(f"{self.repository}: exists and is public; make it private, or choose another name")
            commit = api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                allow_patterns=list(FILES),
                commit_message=f"Upload a model of MedDelinea {__version__}",
            )
        except MedDelineaError:
            raise
        except HfHubHTTPError as error:
            raise UsageError(
                f"{self.repository}: the hub refuses the upload ({reason_of(error)}); set HF_TOKEN to a token that "
                "may write to it"
            ) from error
        except Exception as error:
            raise MedDelineaError(f"{self.repository}: not uploaded ({reason_of(error)}); try again") from error
        return HubModel(self.repository, commit.oid)

    def _why_absent(self, error: Exception) -> str:
        """Why a download failed, and the remedy."""
        from huggingface_hub import errors

        match error:
            case errors.GatedRepoError():
                return "access is granted by its owner; ask for it on the repository's page, then set HF_TOKEN"
            case errors.RepositoryNotFoundError():
                return (
                    "no such folder here, and no such repository on the Hugging Face hub; check the name, or set "
                    "HF_TOKEN if it is private"
                )
            case errors.RevisionNotFoundError():
                return f"the repository has no branch, tag or commit '{self.revision}'"
            case errors.LocalEntryNotFoundError():
                return "no such folder here, the Hugging Face hub cannot be reached, and its cache does not hold it"
        return f"not downloaded ({reason_of(error)}); try again"
