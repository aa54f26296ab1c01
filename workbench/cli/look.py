"""``workbench look``: an attention map as a picture, without a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.output import emit, examples, note
from workbench.errors import BadInput

if TYPE_CHECKING:
    from workbench.models import LoadedModel, Trace

FORMATS = (".png", ".svg")


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "workbench look embedded --text README.md --layer 3 --head 5 -o map.png",
            "workbench look embedded --prompt 'The key of Ada is under the mat. The key of Ada is' -o map.svg",
            "workbench look embedded --text README.md --rows 100:164 --cols 0:64 --layer 2 --head 1 -o region.png",
            "workbench look ./my-model --text - --kernel eager --json < story.txt",
        )
    )(look)


def look(
    model: Annotated[str, typer.Argument(help="embedded, embedded-relu, a folder, or a hub id.")] = "embedded",
    text: Annotated[str | None, typer.Option(help="A text file; - reads standard input.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The text itself.")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer, from 0.", show_default="the middle one")] = None,
    head: Annotated[int | None, typer.Option(help="Head, from 0.", show_default="mean of all heads")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write: .png or .svg.")] = Path("map.png"),
    rows: Annotated[str | None, typer.Option(help="Query positions START:STOP.", show_default="all")] = None,
    cols: Annotated[str | None, typer.Option(help="Key positions START:STOP.", show_default="all")] = None,
    size: Annotated[int, typer.Option(min=1, max=4096, help="Pool to at most SIZE x SIZE cells.")] = 512,
    reduce: Annotated[str, typer.Option(help="How a tile is pooled: mean, max or sum.")] = "mean",
    scheme: Annotated[str, typer.Option(help="viridis, cividis, magma or blue-orange.")] = "viridis",
    scale: Annotated[str, typer.Option(help="Colour scale: linear, sqrt or log.")] = "sqrt",
    kernel: Annotated[str | None, typer.Option(help="Attention kernel to run.", show_default="the model's own")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    beyond_positions: Annotated[
        bool, typer.Option("--beyond-positions", help="Read all of a text that is longer than the model's positions.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="A JSON object on stdout: what was drawn, predicted cost.")
    ] = False,
) -> None:
    """Draw where a head looks: rows are queries, columns are keys, colour is the attention probability.

    The map is computed from queries, keys and the log-sum-exp that the fast kernel left behind; its cost is shown
    before it is computed. A text that is longer than the model's positions is cut there, and the command says so.
    """
    _check_format(output)
    words = _read(text, prompt)
    from workbench.models import load

    loaded = load(model, device=device, attention=kernel)
    layer = loaded.n_layers // 2 if layer is None else layer
    _check_place(loaded, layer, head)
    trace = _trace(loaded, words, layer, beyond_positions)
    spans = _span("rows", rows, trace), _span("cols", cols, trace)
    cost = trace.cost("map", layer=layer, head=head, size=size, rows=spans[0], cols=spans[1])
    note(f"predicted: {cost.seconds:.2g} s, {cost.bytes / 1e6:.3g} MB")
    values, seconds = _map(trace, layer, head, spans, size, reduce, cost.seconds)
    _draw(output, trace, values, spans, _title(loaded, layer, head), reduce, scheme, scale)
    if json:
        emit(_described(loaded, trace, layer, head, values, cost, seconds, output))
    else:
        typer.echo(f"{output}: {values.shape[0]} x {values.shape[1]} cells, {trace.input_ids.shape[1]:,} tokens")


def _check_format(output: Path) -> None:
    if output.suffix.lower() not in FORMATS:
        raise BadInput(f"--output {output} must end in {' or '.join(FORMATS)}")


def _check_place(loaded: LoadedModel, layer: int, head: int | None) -> None:
    if not 0 <= layer < loaded.n_layers:
        raise BadInput(f"--layer must lie in 0 .. {loaded.n_layers - 1} for {loaded.name}, got {layer}")
    if head is not None and not 0 <= head < loaded.n_heads:
        raise BadInput(f"--head must lie in 0 .. {loaded.n_heads - 1} for {loaded.name}, got {head}")


def _read(text: str | None, prompt: str | None) -> str:
    if (text is None) == (prompt is None):
        raise BadInput("give the text once: --text FILE (or - for standard input) or --prompt TEXT")
    if prompt is not None:
        return prompt
    try:
        return sys.stdin.read() if text == "-" else Path(str(text)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--text {text} cannot be read as a UTF-8 text: {error}") from error


def _trace(loaded: LoadedModel, words: str, layer: int, beyond: bool) -> Trace:
    ids = loaded.encode(words)["input_ids"]
    limit = loaded.max_positions
    if limit and ids.shape[1] > limit and not beyond:
        note(f"reading the first {limit:,} of {ids.shape[1]:,} tokens, all that {loaded.name} has positions for")
        note("(--beyond-positions reads everything)")
        ids = ids[:, :limit]
    return loaded.trace(ids, hidden=False, layers=[layer], beyond_positions=beyond)


def _span(name: str, given: str | None, trace: Trace) -> slice:
    length = trace.input_ids.shape[1]
    if given is None:
        return slice(0, length)
    start, colon, stop = given.partition(":")
    try:
        span = slice(int(start or 0), int(stop or length))
    except ValueError as error:
        raise BadInput(f"--{name} must be START:STOP, such as 0:64, got {given!r}") from error
    if not colon or not 0 <= span.start < span.stop <= length:
        raise BadInput(f"--{name} must be START:STOP with 0 <= START < STOP <= {length}, got {given!r}")
    return span


def _map(
    trace: Trace, layer: int, head: int | None, spans: tuple[slice, slice], size: int, reduce: str, expected: float
) -> tuple[Any, float]:
    import time

    start = time.perf_counter()
    with _bar(expected) as advance:
        pooled = trace.map(layer, head, size=size, reduce=reduce, rows=spans[0], cols=spans[1], progress=advance)
    values = pooled if head is not None else pooled.mean(0)
    return values.float().cpu().numpy(), time.perf_counter() - start


@contextmanager
def _bar(expected: float) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=100, desc="map", unit="%", disable=expected < 1, leave=False) as bar:
        yield lambda fraction: bar.update(round(100 * fraction) - bar.n)


def _title(loaded: LoadedModel, layer: int, head: int | None) -> str:
    which = "mean of all heads" if head is None else f"head {head}"
    return f"{loaded.name}: layer {layer}, {which}"


def _draw(
    output: Path,
    trace: Trace,
    values: Any,
    spans: tuple[slice, slice],
    title: str,
    reduce: str,
    scheme: str,
    scale: str,
) -> None:
    from workbench import storage
    from workbench.views import raster

    tokens = [trace.tokens[0][span] for span in spans]
    exact = [len(names) if len(names) == side else None for names, side in zip(tokens, values.shape)]
    options: dict[str, Any] = {
        "title": title,
        "subtitle": f"{trace.input_ids.shape[1]:,} tokens, kernel {trace.attention}"
        + ("" if all(exact) else f", {reduce} of {-(-len(tokens[0]) // values.shape[0])} tokens a cell"),
        "row_label": "query position (tokens)",
        "col_label": "key position (tokens)",
        "row_tokens": tokens[0] if exact[0] else None,
        "col_tokens": tokens[1] if exact[1] else None,
        "rows": (spans[0].start, spans[0].stop),
        "cols": (spans[1].start, spans[1].stop),
        "scheme": scheme,
        "scale": scale,
        "units": "probability",
    }
    if output.suffix.lower() == ".svg":
        storage.write_text(output, raster.map_svg(values, **options))
        return
    with storage.atomic_write(output, "wb") as file:
        raster.map_figure(values, **options).save(file, "PNG")


def _described(
    loaded: LoadedModel,
    trace: Trace,
    layer: int,
    head: int | None,
    values: Any,
    cost: Any,
    seconds: float,
    output: Path,
) -> dict[str, Any]:
    return {
        "model": loaded.name,
        "kernel": trace.attention,
        "tokens": int(trace.input_ids.shape[1]),
        "layer": layer,
        "head": head,
        "shape": list(values.shape),
        "predicted": asdict(cost),
        "seconds": round(seconds, 4),
        "largest": round(float(values.max()), 6),
        "output": str(output),
    }
