"""What the paper on talking heads claims and how each claim is tested.

Every test reads the study's tidy frame: experiment, case, unit, x, metric, value (and the runner's seed).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "arXiv 2406.09519"
#: Things in a list at which the card asks a small model for .9.
LEARNED_AT = 6
#: The planted case with a strong nuisance that the card names, and its bounds on z.
HIDDEN, STANDS_OUT, ORDINARY = "d=128, d_h=16, nuisance 3, gain 1", 3.0, 2.0


def _values(frame: pd.DataFrame, experiment: str, metric: str, case: str | None = None) -> pd.Series:
    rows = frame[(frame.experiment == experiment) & (frame.metric == metric)]
    return rows.value if case is None else rows[rows.case == case].value


def component_stands_out(frame: pd.DataFrame) -> Outcome:
    values = _values(frame, "planted", "top z", HIDDEN)
    if len(values) < 2:
        return Outcome.unmeasured("no channels were planted")
    found = _values(frame, "planted", "component found", HIDDEN).mean()
    return Outcome.of(statistics.bootstrap(values), STANDS_OUT, ">", f"right component in {found:.0%} of the seeds")


def whole_hides_it(frame: pd.DataFrame) -> Outcome:
    values = _values(frame, "planted", "whole z", HIDDEN)
    if len(values) < 2:
        return Outcome.unmeasured("no channels were planted")
    largest = _values(frame, "planted", "pair has largest whole score", HIDDEN).mean()
    note = f"the right pair has the largest whole-matrix score in {largest:.0%} of the seeds"
    return Outcome.of(statistics.bootstrap(values), ORDINARY, "<", note)


def removal_hurts(frame: pd.DataFrame, kind: str = "") -> Outcome:
    """Mean damage of the top components minus that of random ones, in nats; resampled within each group."""
    top = _values(frame, f"{kind}removed", "damage", "top").to_numpy()
    random = _values(frame, f"{kind}removed", "damage", "random").to_numpy()
    if len(top) < 2 or len(random) < 2:
        return Outcome.unmeasured("no components were removed")
    interval = statistics.difference_of_means(top, random)
    above = float((random < top.max()).mean())
    note = f"largest of the top {top.max():.4f} nats, above {above:.0%} of random ones (largest {random.max():.4f})"
    return Outcome.of(interval, 0.0, ">", note)


def steering_selects(frame: pd.DataFrame, kind: str = "") -> Outcome:
    """Share of grid points at which another listed colour is named: channels minus the mean of random spaces."""
    rows = frame[(frame.experiment == f"{kind}steered") & (frame.metric == "changed")]
    if not len(rows):
        return Outcome.unmeasured("nothing was steered")
    rows = rows.assign(kind=rows.case.where(rows.case == "channels", "random"))
    keys = [key for key in ("seed", "unit") if key in rows]
    wide = rows.pivot_table(index=keys, columns="kind", values="value")
    note = f"channels {wide['channels'].mean():.3f}, random spaces {wide['random'].mean():.3f}"
    return Outcome.of(statistics.of_differences(wide["channels"] - wide["random"]), 0.0, ">", note)


def steering_repairs(frame: pd.DataFrame, kind: str = "") -> Outcome:
    rows = frame[(frame.experiment == f"{kind}steered") & (frame.case == "channels")]
    keys = [key for key in ("seed", "unit") if key in rows]
    wide = rows.pivot_table(index=keys, columns="metric", values="value")
    if not {"accuracy before", "accuracy at best point"} <= set(wide):
        return Outcome.unmeasured("nothing was steered")
    wide = wide.dropna()
    before, after = wide["accuracy before"], wide["accuracy at best point"]
    note = f"lists of the study's long size, second half: {before.mean():.3f} before, {after.mean():.3f} after"
    return Outcome.of(statistics.of_differences(after - before), 0.0, ">", note)


def falls_with_length(frame: pd.DataFrame, kind: str = "") -> Outcome:
    rows = frame[(frame.experiment == f"{kind}list") & (frame.metric == "correct")]
    if rows.x.nunique() < 4:
        return Outcome.unmeasured("accuracy was not measured over lengths")
    curve = rows.groupby("x").value.mean()
    note = " ".join(f"{size:.0f}: {value:.2f}" for size, value in curve.items())
    return Outcome.of(statistics.spearman_interval(rows.x, rows.value), 0.0, "<", note)


def learned(frame: pd.DataFrame, kind: str) -> Outcome:
    """Accuracy at the longest size it was trained on at which the card asks for .9 (6 things)."""
    rows = frame[(frame.experiment == f"{kind}list") & (frame.metric == "correct") & (frame.x == LEARNED_AT)]
    if len(rows) < 2:
        return Outcome.unmeasured(f"no lists of {LEARNED_AT} things were asked")
    return Outcome.of(statistics.wilson(int(rows.value.sum()), len(rows)), 0.9, ">=", f"{len(rows)} lists")


def looks_at_its_entry(frame: pd.DataFrame, kind: str) -> Outcome:
    """Share of the last layer's attention, from the last position, on the remaining thing's entry minus on the taken.

    A mover that inhibition steers looks at the entry it names; a model that subtracts looks at what was taken.
    """
    rows = frame[(frame.experiment == f"{kind}list") & (frame.metric == "looks at")]
    if not len(rows):
        return Outcome.unmeasured("nobody looked")
    last = rows[rows.x == rows.x.max()]
    keys = [key for key in ("seed", "case") if key in last]
    wide = last.pivot_table(index=keys, columns="unit", values="value")
    note = f"its entry {wide['its entry'].mean():.2f}, taken {wide['taken'].mean():.2f}, {len(wide)} heads"
    return Outcome.of(statistics.bootstrap(wide["its entry"] - wide["taken"]), 0.0, ">", note)


def _of_lists(code: str, kind: str, name: str) -> tuple[Claim, ...]:
    """The claims about one of the small list models; all but the first are the paper's mechanism."""
    return (
        Claim(f"{code}1", f"{name}: learned, .9 or more at {LEARNED_AT} things", "card", partial(learned, kind=kind)),
        Claim(f"{code}2", f"{name}: accuracy falls with the length of the list", SOURCE,
              partial(falls_with_length, kind=kind)),
        Claim(f"{code}3", f"{name}: the last layer looks at the remaining entry, not at what was taken", SOURCE,
              partial(looks_at_its_entry, kind=kind)),
        Claim(f"{code}4", f"{name}: removing a top component hurts more than removing another one", SOURCE,
              partial(removal_hurts, kind=kind)),
        Claim(f"{code}5", f"{name}: steering among the channels changes what is selected more than random", SOURCE,
              partial(steering_selects, kind=kind)),
        Claim(f"{code}6", f"{name}: long lists, the best point of one half raises the accuracy of the other", SOURCE,
              partial(steering_repairs, kind=kind)),
    )  # fmt: skip


CLAIMS = (
    Claim("C1a", "planted: the channel's component stands out (z > 3)", SOURCE, component_stands_out),
    Claim("C1b", "planted: the whole matrices of the same pair do not (z < 2)", SOURCE, whole_hides_it),
    Claim("C2", "list: removing a top component hurts more than removing a random one", SOURCE, removal_hurts),
    Claim("C3", "list: steering among the channels changes what is selected more than in random spaces", SOURCE,
          steering_selects),
    Claim("C4", "long lists: the best point of one half raises the accuracy of the other", SOURCE, steering_repairs),
    Claim("L1", "list: accuracy falls with the length of the list", SOURCE, falls_with_length),
    *_of_lists("I", "item ", "small model, things"),
    *_of_lists("K", "colour ", "small model, colours"),
)  # fmt: skip
