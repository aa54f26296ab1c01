"""``look``: the picture without a notebook."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXT = "the key of ada is under the mat the key of ada is"


@pytest.fixture
def look(cli: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(*arguments: str, output: str = "map.png", **options: Any) -> Any:
        return cli("look", str(tiny_model), "-o", str(tmp_path / output), *arguments, **options)

    return run


def test_png_with_everything_on_the_axes(look: Callable[..., Any], tmp_path: Path) -> None:
    from PIL import Image

    done = look("--prompt", TEXT, "--layer", "1", "--head", "2")
    assert done.exit_code == 0, done.output
    assert "predicted:" in done.stderr
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_svg_names_model_tokens_axes_and_unit(look: Callable[..., Any], tmp_path: Path) -> None:
    assert look("--prompt", TEXT, "--layer", "1", "--head", "2", output="map.svg").exit_code == 0
    drawn = (tmp_path / "map.svg").read_text()
    for word in (
        "layer 1, head 2",
        "13 tokens",
        "query position (tokens)",
        "key position (tokens)",
        "probability",
        "ada",
    ):
        assert word in drawn


def test_json_tells_what_was_drawn_and_the_predicted_cost(look: Callable[..., Any], tiny_model: Path) -> None:
    done = look("--prompt", TEXT, "--layer", "0", "--head", "3", "--json")
    value = json.loads(done.stdout)
    assert value["shape"] == [13, 13]
    assert (value["layer"], value["head"], value["tokens"]) == (0, 3, 13)
    assert set(value["predicted"]) == {"flops", "bytes", "seconds"}
    assert value["predicted"]["bytes"] > 0
    assert value["largest"] == pytest.approx(1.0)  # the first query sees only itself


def test_a_region_is_exact_and_equals_the_models_own_attention(look: Callable[..., Any], tiny_model: Path) -> None:
    import torch

    from workbench.models import load

    done = look("--prompt", TEXT, "--layer", "1", "--head", "2", "--rows", "4:9", "--cols", "2:6", "--json")
    model = load(str(tiny_model), attention="eager")
    ids = model.encode(TEXT)["input_ids"]
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.model(ids, output_attentions=True).attentions[1][0, 2, 4:9, 2:6]
    value = json.loads(done.stdout)
    assert value["shape"] == [5, 4]
    assert value["largest"] == pytest.approx(float(expected.max()), abs=1e-5)


def test_without_a_head_the_mean_of_all_is_drawn(look: Callable[..., Any], tmp_path: Path) -> None:
    assert look("--prompt", TEXT, output="map.svg").exit_code == 0
    assert "layer 1, mean of all heads" in (tmp_path / "map.svg").read_text()


def test_a_text_beyond_the_positions_is_cut_and_the_command_says_so(look: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(" ".join([TEXT] * 6))
    cut = look("--text", str(tmp_path / "long.txt"), "--json")
    assert cut.exit_code == 0, cut.output
    assert "first 48 of 78 tokens" in cut.stderr
    assert json.loads(cut.stdout)["tokens"] == 48
    whole = look("--text", str(tmp_path / "long.txt"), "--beyond-positions", "--json")
    assert json.loads(whole.stdout)["tokens"] == 78


def test_standard_input(look: Callable[..., Any]) -> None:
    assert json.loads(look("--text", "-", "--json", input=TEXT).stdout)["tokens"] == 13


def test_pooling_is_said_in_the_picture(look: Callable[..., Any], tmp_path: Path) -> None:
    done = look("--prompt", " ".join([TEXT] * 3), "--size", "10", "--reduce", "max", "--head", "0", output="map.svg")
    assert done.exit_code == 0, done.output
    assert "max of 4 tokens a cell" in (tmp_path / "map.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "2"], "--layer must lie in 0 .. 1"),
        (["--head", "4"], "--head must lie in 0 .. 3"),
        (["--rows", "3"], "--rows must be START:STOP"),
        (["--rows", "9:3"], "0 <= START < STOP <= 13"),
        (["--cols", "0:99"], "0 <= START < STOP <= 13"),
        (["--cols", "a:b"], "--cols must be START:STOP"),
        (["--reduce", "median"], "reduce"),
        (["--scheme", "viridsi"], "did you mean 'viridis'"),
        (["--scale", "cubic"], "linear"),
        (["--kernel", "flash"], "flash-attention"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_values_are_usage_errors(
    look: Callable[..., Any], arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = look("--prompt", TEXT, *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert not (tmp_path / "map.png").exists()


def test_empty_text(look: Callable[..., Any]) -> None:
    done = look("--prompt", "")
    assert done.exit_code == 2
    assert "empty" in done.stderr


def test_a_folder_that_cannot_be_written(look: Callable[..., Any], cli: Callable[..., Any], tiny_model: Path) -> None:
    done = cli("look", str(tiny_model), "--prompt", TEXT, "-o", "/proc/self/map.png")
    assert done.exit_code == 1
    assert "cannot write" in done.stderr
