"""``workbench train``: the recipe that made the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.output import examples, note

train = typer.Typer(no_args_is_help=True, help="Train the models that ship with the package.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(train, name="train", epilog=examples("workbench train embedded --out runs/embedded"))


def _check(folder: Path | None) -> None:
    """A folder that cannot be written is said before the training and not after it."""
    from workbench.studies.cells import check_writable

    if folder is not None:
        check_writable(folder, "choose another --out")


@train.callback()
def _train() -> None:
    """Train the models that ship with the package."""


@train.command(
    epilog=examples(
        "workbench train embedded --out runs/embedded",
        "workbench train embedded --variant embedded-relu --out runs/relu --seed 1",
        "workbench train embedded --size tiny --steps 50 --out runs/try --no-resume",
    )
)
def embedded(
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where checkpoints and the model go.", show_default="user's cache"),
    ] = None,
    variant: Annotated[str, typer.Option(help="embedded (Llama, SwiGLU) or embedded-relu (ReLU MLP).")] = "embedded",
    size: Annotated[str, typer.Option(help="full: the shipped model, for a GPU; tiny: seconds on a CPU.")] = "full",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.", show_default="the recipe's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda if there is one")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")] = True,
) -> None:
    """Train the embedded model on public-domain books and the small world; resumes after a kill."""
    from workbench.training import train_embedded

    _check(out_folder)
    folder = train_embedded(
        variant, out_folder, size=size, steps=steps, seed=seed, device=device, resume=resume, progress=True
    )
    note(f"measure it: workbench models eval {folder}")
    typer.echo(folder)


@train.command(
    epilog=examples(
        "workbench train lists --out runs/list-item",
        "workbench train lists --kind colour --seed 1 --out runs/list-colour",
    )
)
def lists(
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the model goes.", show_default="user's cache")
    ] = None,
    kind: Annotated[str, typer.Option(help="item (name what is left) or colour (name its colour).")] = "item",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.", show_default="the recipe's")] = None,
    layers: Annotated[int, typer.Option(min=1, help="Attention layers.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train an attention-only model that says what is left of a list; minutes on one core."""
    from workbench.training.lists import train_lists

    _check(out_folder)
    typer.echo(train_lists(kind, out_folder, steps=steps, layers=layers, seed=seed, device=device))
