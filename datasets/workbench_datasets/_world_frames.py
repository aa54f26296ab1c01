"""How the small world says and asks its facts.

One entry per relation: frames that state it (the object always last, so that each is a completion prompt too) and
frames that ask it. Frames are used with Zipf-like frequency in the order given; the last two of each list are held
out of all training text (checked by a test).
"""

from __future__ import annotations

from dataclasses import dataclass

HELD_OUT = 2


@dataclass(frozen=True)
class Relation:
    """A relation with the types of its two ends and its wordings; ``article`` stands before the object in answers."""

    name: str
    subject: str
    object: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]

    def frames(self, form: str = "statement", split: str = "train") -> tuple[str, ...]:
        """``form``: ``statement`` or ``question``; ``split``: ``train`` or ``heldout``."""
        if form not in ("statement", "question"):
            raise ValueError(f"form={form!r}: expected 'statement' or 'question'")
        if split not in ("train", "heldout"):
            raise ValueError(f"split={split!r}: expected 'train' or 'heldout'")
        frames = self.statements if form == "statement" else self.questions
        return frames[:-HELD_OUT] if split == "train" else frames[-HELD_OUT:]


def _relation(name: str, subject: str, object_: str, statements: str, questions: str) -> Relation:
    def lines(text: str) -> tuple[str, ...]:
        return tuple(line.strip() for line in text.strip().splitlines())

    return Relation(name, subject, object_, lines(statements), lines(questions))


RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        _relation(
            "town", "person", "town",
            """{s} lives in {o}
            the home of {s} is in {o}
            {s} has a house in {o}
            the town where {s} lives is {o}
            {s} is at home in {o}
            everybody knows that {s} lives in the town of {o}
            {s} rents a room in {o}
            if you look for {s}, go to {o}
            {s} keeps a home in {o}
            the house of {s} stands in {o}""",
            """Where does {s} live?
            In which town does {s} live?
            What is the home town of {s}?
            Which town is the home of {s}?
            Where is the house of {s}?
            In which town is {s} at home?
            What town does {s} live in?
            Where does {s} have a house?""",
        ),
        _relation(
            "job", "person", "job",
            """{s} works as a {o}
            {s} is a {o}
            the job of {s} is that of a {o}
            {s} earns a living as a {o}
            by trade {s} is a {o}
            {s} was trained to be a {o}
            {s} has always worked as a {o}
            the work of {s} is that of a {o}
            {s} has the job of a {o}
            {s} makes a living as a {o}""",
            """What does {s} work as?
            What is the job of {s}?
            How does {s} earn a living?
            What is the trade of {s}?
            Which job does {s} have?
            What work does {s} do?
            What was {s} trained to be?
            Which trade does {s} work in?""",
        ),
        _relation(
            "instrument", "person", "instrument",
            """{s} plays the {o}
            the instrument of {s} is the {o}
            every evening {s} plays the {o}
            {s} learned to play the {o}
            {s} makes music on the {o}
            {s} is good at playing the {o}
            in the band {s} plays the {o}
            at every feast {s} plays the {o}
            {s} likes to play the {o}
            the music of {s} comes from the {o}""",
            """What does {s} play?
            Which instrument does {s} play?
            What is the instrument of {s}?
            On what does {s} make music?
            What did {s} learn to play?
            What does {s} play in the band?
            Which instrument is {s} good at?
            On which instrument does {s} play?""",
        ),
        _relation(
            "pet", "person", "pet",
            """{s} owns a {o}
            the pet of {s} is a {o}
            {s} keeps a {o}
            at home {s} has a {o}
            {s} takes care of a {o}
            the animal of {s} is a {o}
            {s} goes for walks with a {o}
            {s} feeds a {o}
            the animal that {s} keeps is a {o}
            as a pet {s} has a {o}""",
            """What pet does {s} own?
            Which animal does {s} keep?
            What is the pet of {s}?
            Which pet does {s} have?
            What animal does {s} take care of?
            What kind of pet does {s} have?
            Which animal does {s} own?
            What is the animal of {s}?""",
        ),
        _relation(
            "colour", "person", "colour",
            """the favourite colour of {s} is {o}
            {s} likes the colour {o}
            {s} always dresses in {o}
            the colour that {s} likes best is {o}
            {s} painted the door {o}
            of all colours {s} loves {o}
            {s} wears a coat of {o}
            when {s} may choose a colour, it is {o}
            the best colour for {s} is {o}
            {s} loves the colour {o}""",
            """What is the favourite colour of {s}?
            Which colour does {s} like?
            What colour does {s} like best?
            In which colour does {s} dress?
            Which colour does {s} love?
            What colour would {s} choose?
            What colour does {s} love?
            Which is the favourite colour of {s}?""",
        ),
        _relation(
            "food", "person", "food",
            """{s} likes to eat {o}
            the favourite food of {s} is {o}
            for supper {s} eats {o}
            {s} never says no to {o}
            what {s} eats most gladly is {o}
            on feast days {s} cooks {o}
            {s} is fond of {o}
            the dish that {s} loves is {o}
            the food that {s} likes best is {o}
            at the table {s} asks for {o}""",
            """What does {s} like to eat?
            What is the favourite food of {s}?
            What does {s} eat for supper?
            Which food does {s} like best?
            Which dish does {s} love?
            What is {s} fond of eating?
            Which food does {s} love?
            What does {s} eat most gladly?""",
        ),
        _relation(
            "employer", "person", "organisation",
            """{s} works for {o}
            the employer of {s} is {o}
            {s} is employed by {o}
            {s} gets paid by {o}
            {s} signed a contract with {o}
            the company that pays {s} is {o}
            {s} joined the company {o}
            {s} has a desk at {o}
            the company of {s} is {o}
            {s} is on the pay list of {o}""",
            """Who is the employer of {s}?
            Which company does {s} work for?
            Who pays {s}?
            Who employs {s}?
            Which company did {s} join?
            With whom did {s} sign a contract?
            For which company does {s} work?
            What company is {s} employed by?""",
        ),
        _relation(
            "month", "person", "month",
            """{s} was born in {o}
            the birthday of {s} is in {o}
            {s} celebrates a birthday in {o}
            the month in which {s} was born is {o}
            {s} came into the world in {o}
            every year {s} grows older in {o}
            the birth of {s} fell in {o}
            {s} gets presents in {o}
            the birth month of {s} is {o}
            {s} has a birthday in {o}""",
            """In which month was {s} born?
            When is the birthday of {s}?
            When was {s} born?
            In what month does {s} celebrate a birthday?
            What is the birth month of {s}?
            In which month does {s} grow older?
            In which month is the birthday of {s}?
            What month was {s} born in?""",
        ),
        _relation(
            "mentor", "person", "person",
            """the mentor of {s} is {o}
            {s} was taught by {o}
            {s} learned the trade from {o}
            the person who taught {s} is {o}
            {s} had lessons from {o}
            {s} owes every skill to {o}
            {s} looks up to the mentor {o}
            {s} learned everything from {o}""",
            """Who is the mentor of {s}?
            Who taught {s}?
            From whom did {s} learn the trade?
            Who gave lessons to {s}?
            Who was the mentor of {s}?
            By whom was {s} taught?""",
        ),
        _relation(
            "alias", "person", "alias",
            """{s} is also called {o}
            the nickname of {s} is {o}
            friends call {s} by the name {o}
            people know {s} as {o}
            another name of {s} is {o}
            among friends {s} is called {o}""",
            """What is the nickname of {s}?
            What do friends call {s}?
            By which name do people know {s}?
            What is another name of {s}?
            What is {s} also called?
            By which nickname is {s} known?""",
        ),
        _relation(
            "river", "town", "river",
            """{s} lies on the river {o}
            the river of {s} is the {o}
            through {s} flows the {o}
            the bridge in {s} crosses the {o}
            the people of {s} drink from the {o}
            the water of {s} comes from the river {o}
            the boats of {s} sail on the {o}""",
            """On which river does {s} lie?
            Which river flows through {s}?
            What is the river of {s}?
            What river does the bridge in {s} cross?
            Which river do the boats of {s} sail on?
            What river runs through {s}?""",
        ),
        _relation(
            "region", "town", "region",
            """{s} lies in the region of {o}
            the region of {s} is {o}
            {s} belongs to {o}
            {s} is a town in {o}
            the land around {s} is called {o}
            {s} is part of {o}
            on the map {s} is found in {o}""",
            """In which region does {s} lie?
            What is the region of {s}?
            To which region does {s} belong?
            Which region is {s} part of?
            Of which region is {s} a town?
            In what region is {s} found?""",
        ),
        _relation(
            "product", "town", "product",
            """{s} is known for its {o}
            the people of {s} make {o}
            {s} is rich because of its {o}
            the best thing made in {s} is {o}
            the carts that leave {s} carry {o}
            {s} sells mostly {o}
            the trade of {s} lives from {o}""",
            """What is {s} known for?
            What do the people of {s} make?
            What is the best thing made in {s}?
            What do the carts of {s} carry?
            What does {s} sell?
            What makes {s} rich?""",
        ),
        _relation(
            "event-town", "event", "town",
            """{s} took place in {o}
            {s} happened in {o}
            the town that saw {s} was {o}
            {s} is remembered in {o}
            people came to see {s} in {o}
            the place of {s} was {o}""",
            """Where did {s} take place?
            In which town did {s} happen?
            Which town saw {s}?
            Where is {s} remembered?
            In which town was {s}?
            Which was the place of {s}?""",
        ),
        _relation(
            "event-month", "event", "month",
            """{s} began in {o}
            the month of {s} was {o}
            {s} fell in {o}
            people talk about {s} every {o}
            {s} was in {o}
            {s} came in the month of {o}""",
            """When did {s} begin?
            In which month was {s}?
            What was the month of {s}?
            When do people talk about {s}?
            In which month did {s} fall?
            In what month did {s} begin?""",
        ),
    )
}  # fmt: skip

# Side facts hang on an object, so that a coherent passage can be built around any object: name, what it says of the
# holder {s} of object {x}, what it says of the object itself, how it is asked, the property's vocabulary.
SIDES: dict[str, tuple[tuple[str, str, str, str, str], ...]] = {
    "town": (
        ("river", "from the window one sees the river {p}", "", "", "river"),
        ("region", "this is the region of {p}", "", "", "region"),
    ),
    "job": (
        ("tool", "every day {s} works with the {p}", "every {x} works with the {p}",
         "What does a {x} work with?", "tool"),
        ("inn", "after work {s} rests at the inn called {p}", "the {x} rests at the inn called {p}",
         "At which inn does a {x} rest?", "inn"),
    ),
    "instrument": (
        ("wood", "it is made of {p}", "the {x} is made of {p}", "What is the {x} made of?", "wood"),
        ("lesson", "the lessons are on {p}", "lessons for the {x} are on {p}",
         "When are the lessons for the {x}?", "day"),
    ),
    "pet": (
        ("feed", "the animal eats {p}", "every {x} eats {p}", "What does a {x} eat?", "feed"),
        ("bed", "it sleeps in the {p}", "a {x} sleeps in the {p}", "Where does a {x} sleep?", "bed"),
    ),
    "colour": (
        ("virtue", "this colour stands for {p}", "{x} stands for {p}", "What does {x} stand for?", "virtue"),
        ("mineral", "the dye is made from {p}", "{x} dye is made from {p}", "What is {x} dye made from?", "mineral"),
    ),
    "food": (
        ("sauce", "it is eaten with {p}", "one eats {x} with {p}", "What does one eat {x} with?", "sauce"),
        ("market", "it is sold on {p}", "{x} is sold on {p}", "When is {x} sold?", "day"),
    ),
    "organisation": (
        ("hall", "its hall is in {p}", "the hall of {x} is in {p}", "Where is the hall of {x}?", "town"),
        ("ware", "the company sells {p}", "{x} sells {p}", "What does {x} sell?", "product"),
    ),
    "month": (
        ("feast", "the feast of that month is {p}", "the feast of {x} is {p}", "What is the feast of {x}?", "feast"),
        ("flower", "at that time the {p} blooms", "in {x} blooms the {p}", "Which flower blooms in {x}?", "flower"),
    ),
}  # fmt: skip

PERSON_RELATIONS = ("town", "job", "instrument", "pet", "colour", "food", "employer", "month")
