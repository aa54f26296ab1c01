"""What the paper on knowledge-conflict heads claims and how each claim is tested.

Every test reads the study's tidy frame: model, experiment, pruned, k, unit (a prompt or a draw), person, relation,
form, step, metric, value (and the runner's seed). Pairs are the same prompt of the same seed with other heads pruned.
Prompts about one person are no independent observations: each person counts once, by the mean over their prompts, and
``n`` is the number of people. Each model is judged by itself, and the weakest decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("memory", "context", "other")
SOURCE = "arXiv 2402.18154"
#: A margin of our own, set before any run of the study: what counts as "hardly hurt".
HARDLY = -0.10


def _each_model(frame: pd.DataFrame, judge: Callable[[pd.DataFrame], Outcome]) -> Outcome:
    """The weakest outcome over the models that were run, with all their notes."""
    found = {str(model): judge(own) for model, own in frame.groupby("model", sort=False)}
    if not found:
        return Outcome.unmeasured("no rows of this experiment")
    return Outcome.weakest_of(found)


def _control(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame.experiment == "control"]


def _people(frame: pd.DataFrame, metric: str, first: str, second: str) -> pd.DataFrame:
    """Columns ``first`` and ``second``, a row a person: means over the prompts that both were asked."""
    rows = frame[(frame.metric == metric) & frame.pruned.isin([first, second])]
    keys = [key for key in ("seed", "person", "unit") if key in rows]
    wide = rows.pivot_table(index=keys, columns="pruned", values="value", aggfunc="mean")
    wide = wide.dropna() if {first, second} <= set(wide) else wide.iloc[:0]
    return wide.groupby(level="person").mean()


def _shift(frame: pd.DataFrame, metric: str, label: str, baseline: str = "nothing", threshold: float = 0.0) -> Outcome:
    """How much more often ``metric`` comes with ``label`` than with ``baseline``, in one model, over people."""
    people = _people(frame, metric, label, baseline)
    if len(people) < 2:
        return Outcome.unmeasured(f"{metric} was not measured with {label} and {baseline}")
    means = f"{people[label].mean():.3f} against {people[baseline].mean():.3f} with {baseline}"
    interval = statistics.of_differences(people[label] - people[baseline])
    note = f"{metric} {means} ({interval.n} people)"
    return Outcome.of(interval, threshold, ">" if threshold == 0 else ">=", note)


def _seeds(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    yield from (own for _, own in frame.groupby("seed")) if "seed" in frame else [frame]


def _strongest(frame: pd.DataFrame, metric: str, label: str) -> pd.DataFrame:
    """Rows of the draw of random heads, as many as ``label`` has, whose rate is highest; one draw a seed."""
    import pandas as pd

    chosen = [frame.iloc[:0]]
    for own in _seeds(frame):
        sizes = own[(own.pruned == label) & (own.metric == metric)].k.unique()
        drawn = own[(own.pruned == "random heads") & (own.metric == f"{metric} rate") & own.k.isin(sizes)]
        if len(drawn):
            chosen.append(drawn[drawn.unit == drawn.groupby("unit")["value"].mean().idxmax()])
    return pd.concat(chosen)


def _beyond_random(frame: pd.DataFrame, metric: str, label: str) -> Outcome:
    """The rate with these heads pruned minus that of the strongest draw of as many random heads, over people."""
    rows = frame[(frame.pruned == label) & (frame.metric == metric)]
    pruned, drawn = (part.groupby("person")["value"].mean() for part in (rows, _strongest(frame, metric, label)))
    both = (pruned - drawn).dropna()
    if len(both) < 2:
        return Outcome.unmeasured("random heads were not drawn")
    draws = frame[frame.pruned == "random heads"].unit.nunique()
    note = f"the strongest of {draws} random draws reaches {drawn.mean():.3f}"
    return Outcome.of(statistics.of_differences(both), 0.0, ">", note)


def _wins(metric: str, label: str) -> Callable[[pd.DataFrame], Outcome]:
    """The rate rises, and lies above what random other heads reach."""

    def judge(own: pd.DataFrame) -> Outcome:
        return Outcome.weakest([_shift(own, metric, label), _beyond_random(own, metric, label)])

    return lambda frame: _each_model(_control(frame), judge)


memory_wins, context_wins = _wins("memory", "context heads"), _wins("context", "memory heads")


def transfers(frame: pd.DataFrame) -> Outcome:
    """Both shifts, on relations and subjects that the heads were not found on, in each format: the smallest."""

    def judge(own: pd.DataFrame) -> Outcome:
        parts = {form: own[own.form == form] for form in ("statement", "question")}
        shifts = {
            form: [_shift(part, "memory", "context heads"), _shift(part, "context", "memory heads")]
            for form, part in parts.items()
        }
        return Outcome.weakest(
            [one for both in shifts.values() for one in both],
            "; ".join(f"{form}s: {one.note}" for form, both in shifts.items() for one in both),
        )

    return _each_model(_control(frame), judge)


def beats_prompt(frame: pd.DataFrame) -> Outcome:
    """PH3 minus an instruction, in either direction."""
    return _against(frame, {"memory": "prompt: memory", "context": "prompt: context"}, 0.0)


def as_good_as_contrast(frame: pd.DataFrame) -> Outcome:
    """PH3 minus contrasted decoding: alpha 1 for the context, -.5 for memory (-1 is closed book itself)."""
    return _against(frame, {"memory": "contrasted -0.50", "context": "contrasted +1.00"}, -0.05)


def _against(frame: pd.DataFrame, others: dict[str, str], threshold: float) -> Outcome:
    heads = {"memory": "context heads", "context": "memory heads"}

    def judge(own: pd.DataFrame) -> Outcome:
        return Outcome.weakest(
            [_shift(own, metric, heads[metric], other, threshold) for metric, other in others.items()]
        )

    return _each_model(frame, judge)


def closed_book_stays(frame: pd.DataFrame) -> Outcome:
    return _each_model(_control(frame), lambda own: _shift(own, "closed book", "context heads", threshold=HARDLY))


def reading_stays(frame: pd.DataFrame) -> Outcome:
    """Memory heads pruned: loss of closed-book recall minus loss of reading about people never seen."""
    return _each_model(_control(frame), _specific)


def _specific(own: pd.DataFrame) -> Outcome:
    lost = {}
    for metric in ("closed book", "copying"):
        people = _people(own, metric, "memory heads", "nothing")
        if len(people) < 2:
            return Outcome.unmeasured(f"{metric} was not measured")
        lost[metric] = (people["nothing"] - people["memory heads"]).to_numpy()
    recall, reading = lost.values()
    note = (
        f"closed book loses {recall.mean():.3f} ({len(recall)} people), reading {reading.mean():.3f} "
        f"({len(reading)} strangers)"
    )
    return Outcome.of(statistics.difference_of_means(recall, reading), 0.0, ">", note)


CLAIMS = (
    Claim("C1", "pruning context heads: memory wins more often than before, and than with random other heads pruned",
          SOURCE, memory_wins),
    Claim("C2", "pruning memory heads: the context wins more often than before, and than with random other heads",
          SOURCE, context_wins),
    Claim("C3", "heads found on three relations work on five others and on other people, in both formats", SOURCE,
          transfers),
    Claim("C4a", "pruning beats an instruction in the prompt", SOURCE, beats_prompt, ("full",)),
    Claim("C4b", "pruning is not more than .05 below contrasted decoding", SOURCE, as_good_as_contrast, ("full",)),
    Claim("C5a", "closed-book recall is hardly hurt (at most .10) by pruning context heads", "our addition",
          closed_book_stays),
    Claim("C5b", "pruning memory heads hurts recall more than reading about people never seen", "our addition",
          reading_stays),
)  # fmt: skip
