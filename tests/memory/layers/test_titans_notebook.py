"""What the notebook of Titans says of the recorded run, held to the record: its table and its verdicts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from workbench.studies import STUDIES
from workbench.studies import _titans_claims as claims
from workbench.studies import _titans_trained as outer


def told() -> tuple[str, dict[str, list[str]]]:
    """What the notebook's fifth section says of the recorded run, and the rows of its table by variant."""
    notebook = Path(__file__).parents[3] / "notebooks" / "02-sequence-layers" / "titans.ipynb"
    texts = ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    (text,) = (said for said in texts if "What the recorded run says" in said)
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    return text, {row[0]: row[1:] for row in rows[1:]}


def test_the_notebook_s_table_is_what_is_recorded():
    from workbench.tasks.recall import state_bytes
    from workbench_datasets import recorded

    frame = recorded.load("titans", "full")
    recall = frame[frame["metric"] == "recall"].pivot_table(index=["part", "variant"], columns="x", values="value")
    text, rows = told()
    assert set(rows) == set(outer.VARIANTS)
    for variant, row in rows.items():
        shares = [*recall.loc["length", variant].dropna(), recall.loc["facts", variant][64.0]]
        kilobytes = round(state_bytes(outer.build(variant)) / 1000)
        assert row == [*(f"{share:.2f}"[1:] for share in shares), str(kilobytes)], variant
    few = recall.loc["facts"][[8.0, 16.0]].drop(claims.WINDOW)
    assert "with 8 or 16 every memory but MAL recalls nearly all" in text
    assert few.drop(claims.MAL).to_numpy().min() > 0.95
    assert few.loc[claims.MAL].max() < 0.5
    far = frame[(frame["metric"] == "recall") & (frame["part"] == "length") & (frame["x"] == 2048)]
    models = far.groupby(["variant", "seed", "model"])["value"].mean()
    assert "two of the six MAG models recall at\nmost .20 and one MAC model .46, where no LMM falls below .75" in text
    lost, kept = models.loc[claims.MAG].sort_values(), models.loc[claims.MAC].sort_values()
    assert len(lost) == 6
    assert lost.iloc[1] == pytest.approx(0.20, abs=0.005)
    assert lost.iloc[2] > 0.4
    assert kept.iloc[0] == pytest.approx(0.46, abs=0.006)
    assert kept.iloc[1] > 0.6
    assert models.loc[claims.LMM].min() > 0.75


def test_the_notebook_s_verdicts_are_those_of_the_record():
    """Means that the text gives, as the claims' notes give them."""
    from workbench_datasets import recorded

    frame = recorded.load("titans", "full")
    found = STUDIES.get("titans").judge(frame, "full")
    text = " ".join(told()[0].split())
    for name, said, numbers in (
        ("C1-TRAINED", ".83 for LMM, .83 with a linear memory, inconclusive", (0.83, 0.83)),
        ("C2-MOMENTUM", "(C2 holds: .83 against .79, +.03 [.01, .05])", (0.83, 0.79)),
        ("C2-DECAY", "*not reproduced*: .83 against .86 without it, -.03 [-.06, -.00]", (0.83, 0.86)),
        ("C4-ORDER", "MAG above MAL (.02): both parts of C4 hold", (0.87, 0.77)),
        ("C4-WINDOW", "(.01); MAC (.87) and MAG (.77) do", (0.87, 0.01)),
    ):
        assert said in text
        means = [float(number) for number in re.findall(r"0\.\d{3}", found[name].note)]
        assert means[:2] == pytest.approx(numbers, abs=0.005), name
    assert [name for name, one in found.items() if one.verdict == "not reproduced"] == ["C2-DECAY", "FORGET-ZERO"]
    assert [name for name, one in found.items() if one.verdict == "inconclusive"] == ["C1-TRAINED", "C3"]
