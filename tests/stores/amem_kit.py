"""What the tests of A-MEM share: eight turns, a small encoder, a filled memory and a model with prepared decisions."""

from __future__ import annotations

from workbench.llm import Scripted
from workbench.memory.retrieval import HashedTfidf
from workbench.memory.stores._amem_notes import Evolution, NoteFields
from workbench.memory.stores.a_mem import AMem

DAY = 86_400.0
TURNS = (
    "Ada adopted a kitten called Pim.",
    "Ada works at the harbour office.",
    "Bo is the mentor of Ada.",
    "Bo plays the violin every Sunday.",
    "It rained on the market.",
    "Pim the kitten chewed the curtains of Ada.",
    "Bo sold the violin to a museum.",
    "The museum is closed on Monday.",
)


def encoder() -> HashedTfidf:
    return HashedTfidf(dim=512)


def memory(**options) -> AMem:
    return AMem(**{"encoder": encoder(), **options})


def filled(turns=TURNS, **options) -> AMem:
    made = memory(**options)
    for n, turn in enumerate(turns):
        made.write(turn, time=n * DAY, key=f"t{n}")
    return made


def fields(n: int) -> NoteFields:
    return NoteFields(keywords=[f"word{n}", "shared", f"thing{n}"], context=f"About {n}.", tags=["talk", f"tag{n}"])


class Decider(Scripted):
    """Links every new note to its nearest neighbour and rewrites the first two that it was shown."""

    def __init__(self):
        self.notes, self.shown = 0, []
        super().__init__(self._say, name="decider")

    def _say(self, request):
        text = request.messages[-1].content
        if "Stored notes" not in text:
            self.notes += 1
            return fields(self.notes - 1)
        ids = [int(line.split(";")[0][4:]) for line in text.splitlines() if line.startswith("id: ")]
        self.shown.append(ids)
        new = self.notes - 1
        return Evolution(
            should_evolve=new % 3 != 0,
            actions=["strengthen", "update_neighbor"],
            suggested_connections=ids[:1],
            tags_to_update=[f"new{new}"],
            new_context_neighborhood=[f"Seen with {new}." for _ in ids[:2]],
            new_tags_neighborhood=[["met", f"by{new}"] for _ in ids[:2]],
        )
