"""`meddelinea import-weights`: published weights -> the components that a run file's `model` section names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from meddelinea.cli.progress import status
from meddelinea.errors import UsageError
from meddelinea.files import whole_folder

if TYPE_CHECKING:
    from diffusers import ModelMixin

DIT_LICENCE = (
    "The published weights of DiT (Peebles and Xie, Meta) are licensed CC BY-NC 4.0: not for commercial use. Whatever "
    "is trained from them is bound by that too."
)
VAE_LICENCE = (
    "The autoencoder of Stable Diffusion v1 is licensed CreativeML Open RAIL-M, its fine-tuned versions sd-vae-ft-mse "
    "and sd-vae-ft-ema MIT: see the page it was downloaded from."
)
SAM_LICENCE = "The published weights of Segment Anything (Kirillov et al., Meta) and MedSAM (Ma et al.): Apache 2.0."


def import_weights(
    output: Annotated[Path, Argument(metavar="OUTPUT", help="Folder for dit/, codec/ and sam/.")],
    dit: Annotated[
        Path | None, Option(metavar="PATH", help="DiT: its original .pt file, or a folder of diffusers.")
    ] = None,
    vae: Annotated[
        Path | None, Option(metavar="PATH", help="Stable Diffusion's autoencoder: a folder of diffusers.")
    ] = None,
    sam: Annotated[
        Path | None,
        Option(metavar="PATH", help="Segment Anything or MedSAM: its original .pth file, or a folder of transformers."),
    ] = None,
) -> None:
    """Convert downloaded weights to components of a run file.

    They are its model.dit and model.codec; of the method `medsam` model.dit is OUTPUT/sam.
    """
    if dit is None and vae is None and sam is None:
        raise UsageError("nothing to import; expected one or more of --dit PATH, --vae PATH, --sam PATH")
    for wanted, part in ((dit, "dit"), (vae, "codec"), (sam, "sam")):
        if wanted is not None and (output / part).exists():
            raise UsageError(f"{output / part} exists already; remove it or choose another folder")
    with status("reading"):
        from meddelinea.models.import_sam import import_sam
        from meddelinea.models.import_weights import import_dit, import_vae

        # Read all before writing any, so that a bad one leaves nothing behind.
        transformer = None if dit is None else import_dit(dit)
        codec = None if vae is None else import_vae(vae)
        anything = None if sam is None else import_sam(sam)
    if transformer is not None:
        _save(transformer, output / "dit", DIT_LICENCE)
    if codec is not None:
        _save(codec, output / "codec", VAE_LICENCE)
    if anything is not None:
        _save(anything, output / "sam", SAM_LICENCE)


def _save(component: ModelMixin, folder: Path, licence: str) -> None:
    """Write a component with its licence."""
    with whole_folder(folder) as part:
        component.save_pretrained(part)
        (part / "LICENSE.txt").write_text(licence + "\n", encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in component.parameters())
    print(f"{folder}: {parameters:,} parameters\n{licence}")
