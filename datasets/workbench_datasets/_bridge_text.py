"""Our own wording of the bridge world. Notes and questions say the same thing in different words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """How an attribute is noted (b: person, v: invented value, x: what sort of thing) and asked for (p: person)."""

    coined: str
    sorts: tuple[str, ...]
    notes: tuple[str, ...]
    questions: tuple[str, ...]


ATTRIBUTES = {
    "pet": Attribute(
        "pet",
        ("goat", "parrot", "ferret", "tabby cat", "greyhound", "tortoise", "rabbit", "hedgehog"),
        (
            "{b} took in a stray {x} and calls it {v}.",
            "Spent the morning with {b}, whose {x} {v} chewed the curtains.",
            "{b} showed everyone photographs of a {x}: little {v} has learnt to open doors.",
            "The vet weighed {v}, the {x} that lives with {b}.",
        ),
        (
            "What is the name of the animal adopted by {p}?",
            "How is the pet of {p} called?",
            "Which name did {p} give to the creature at home?",
        ),
    ),
    "city": Attribute(
        "town",
        ("a flat above the bakery", "a house by the river", "an attic near the station", "rooms behind the theatre"),
        (
            "{b} moved to {v} last spring and found {x}.",
            "Post for {b} goes to {v} now, to {x}.",
            "{b} rents {x} in {v}.",
            "It takes two trains to visit {b}, who settled down in {v} with {x}.",
        ),
        (
            "In which city does {p} live?",
            "What is the town called where {p} has a home?",
            "Where does {p} reside?",
        ),
    ),
    "instrument": Attribute(
        "thing",
        ("violin", "cello", "accordion", "old piano", "bass guitar", "trumpet", "harp", "flute"),
        (
            "{b} practises on a {x} that was built by the workshop {v}.",
            "{b} would not sell the {x} for any money, since it is a genuine {v}.",
            "A string broke on stage, so {b} sent the {x} back to the makers, {v}.",
            "For a birthday {b} was given a {x} with the brand {v} carved into the wood.",
        ),
        (
            "Which maker's musical instrument does {p} play?",
            "What is the brand of the instrument owned by {p}?",
            "Who made the instrument that {p} plays?",
        ),
    ),
    "job": Attribute(
        "firm",
        ("bookkeeper", "surveyor", "translator", "night porter", "engineer", "gardener", "cook", "designer"),
        (
            "{b} started as a {x} at {v} in the autumn.",
            "At {v} they promoted {b} to head {x}.",
            "{b} earns a living as a {x}, paid by {v}.",
            "After four interviews {b} signed with {v}, which had needed a {x} for months.",
        ),
        (
            "Which company employs {p}?",
            "For which employer does {p} work?",
            "What is the name of the business where {p} has a job?",
        ),
    ),
}

RELATIONS = (
    ("mentor", "taught everybody to keep a diary"),
    ("cousin", "knows all the songs by heart"),
    ("neighbour", "waters the plants in August"),
    ("landlady", "never raises the rent"),
    ("godmother", "sends a postcard every month"),
    ("tutor", "explains fractions with apples"),
    ("dentist", "tells jokes during the treatment"),
    ("chess partner", "always opens with the knight"),
    ("brother-in-law", "repairs bicycles for free"),
    ("choirmaster", "hums while walking"),
)

RELATION_NOTES = (
    "{a} mentioned that {b} is the {relation} who {deed}.",
    "{a} has a {relation}, {b}, who {deed}.",
    "We talked about {b} again, the {relation} of {a}, who {deed}.",
    "{a} could not do without {b}, a {relation} who {deed}.",
)

DISTRACTORS = (
    "{p} was late on {day} because of the {thing}.",
    "On {day} {p} lost the {thing} somewhere near {place}.",
    "{p} complained about the {thing} for an hour.",
    "Saw {p} at {place} on {day}; we only waved.",
    "{p} promised to bring the {thing} to {place} next time.",
    "Remember to give the {thing} back to {p} before {day}.",
    "{p} laughed about the {thing} that fell down at {place}.",
    "It rained all {day}, so {p} stayed away from {place}.",
    "{p} asked whether {place} is open on {day}.",
    "{p} is looking for somebody to share a {thing} with.",
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
THINGS = (
    "umbrella", "ladder", "soup", "newspaper", "torch", "blue scarf", "bicycle pump", "lawn chair", "crossword",
    "broken lift", "spare key", "lemon cake", "tax form", "winter coat", "film", "camping stove",
)  # fmt: skip
PLACES = (
    "the market", "the swimming pool", "the library", "the harbour", "the tram stop", "the town hall", "the park",
    "the post office", "the allotments", "the museum",
)  # fmt: skip
