"""``workbench models``: the models that ship with the package, their cards, and their measured tables."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from workbench.cli.output import emit, examples, out
from workbench.errors import UnknownName
from workbench_datasets.files import files_root

if TYPE_CHECKING:
    import pandas as pd

models = typer.Typer(no_args_is_help=True, help="The embedded models: list, card, and the measured table.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(models, name="models", epilog=examples("workbench models list", "workbench models eval embedded"))


@models.command("list", epilog=examples("workbench models list", "workbench models list --json"))
def list_(json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout.")] = False) -> None:
    """Models that ship with the package; any Hugging Face id or folder can be loaded beside them."""
    rows = [_row(folder) for folder in _folders().values()]
    if json:
        emit({"models": rows})
        return
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("name", "family", "layers", "heads", "width", "positions", "MB"):
        table.add_column(name, justify="left" if name in ("name", "family") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(str(row[name]) for name in ("name", "family", "layers", "heads", "width", "positions", "MB")))
    out.print(table)


def _folders() -> dict[str, Path]:
    found = sorted((files_root() / "models").glob("*/model.safetensors"))
    return {path.parent.name: path.parent for path in found}


def _folder(name: str) -> Path:
    if name not in _folders():
        raise UnknownName("embedded model", name, _folders())
    return _folders()[name]


def _row(folder: Path) -> dict[str, Any]:
    config = json_.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "name": folder.name,
        "family": config.get("model_type"),
        "layers": config.get("num_hidden_layers"),
        "heads": config.get("num_attention_heads"),
        "width": config.get("hidden_size"),
        "positions": config.get("max_position_embeddings"),
        "MB": round(weights / 1e6, 1),
        "card": (folder / "README.md").is_file(),
    }


@models.command(epilog=examples("workbench models card embedded"))
def card(name: Annotated[str, typer.Argument(help="A name from `workbench models list`.")] = "embedded") -> None:
    """Show a model's card: what it was trained on, how, and what it reaches."""
    path = _folder(name) / "README.md"
    if not path.is_file():
        raise UnknownName(
            "model card", name, [key for key, folder in _folders().items() if (folder / "README.md").is_file()]
        )
    out.print(Markdown(path.read_text(encoding="utf-8")))


@models.command(
    epilog=examples(
        "workbench models eval embedded",
        "workbench models eval embedded --quick --json",
        "workbench models eval embedded --part induction",
        "workbench models eval runs/embedded --device cuda",
    )
)
def eval(
    name: Annotated[str, typer.Argument(help="embedded, embedded-relu, or a folder of the same recipe.")] = "embedded",
    quick: Annotated[bool, typer.Option("--quick", help="An eighth of the questions, no 5-gram baseline.")] = False,
    part: Annotated[list[str] | None, typer.Option(help="Only this part (may be given again).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout.")] = False,
) -> None:
    """Measure the table of the model card: books, facts, open-book, conflicts, induction, recall, order."""
    from workbench.models.evaluate import evaluate_embedded

    measured = evaluate_embedded(name, quick, device=device, parts=part or None)
    if json:
        from workbench.studies.result import plain

        rows = [{str(key): plain(value) for key, value in row.items()} for row in measured.to_dict("records")]
        emit({**measured.attrs, "measures": rows})
        return
    out.print(_measures(measured))
    out.print(f"{measured.attrs['seconds']:.0f} s")


def _measures(measured: pd.DataFrame) -> Table:
    title = f"{measured.attrs['model']}{' (quick)' if measured.attrs['quick'] else ''}"
    table = Table(title=title, box=None, padding=(0, 1), header_style="bold", title_justify="left")
    for column in ("measure", "group", "value", "95 % interval", "n", "gate"):
        words = column in ("measure", "group")
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    for row in measured.itertuples():
        interval = "" if _absent(row.low) else f"[{row.low:.3g}, {row.high:.3g}]"
        count = "" if _absent(row.n) else f"{row.n:.0f}"
        cells = (str(row.metric), str(row.group), f"{row.value:.4g}", interval, count)
        table.add_row(*map(escape, cells), _gate(row))
    return table


def _gate(row: Any) -> str:
    """The least useful value, and in a word whether it is reached."""
    if _absent(row.gate):
        return ""
    return f"[green]>= {row.gate:.3g} ✓[/green]" if row.value >= row.gate else f"[red]>= {row.gate:.3g} missed[/red]"


def _absent(value: Any) -> bool:
    return value is None or value != value
