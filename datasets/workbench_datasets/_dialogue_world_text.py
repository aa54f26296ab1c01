"""Our own wording of the dialogue world: what is told, how it is asked, and everything said in between.

Statements stand in the past tense so that they fit "I" and a name alike: S and s are the teller's own word for the
person ("I", "my sister Mirano"), ps its possessive, o its object form, v the value, w the value before, x a detail.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """A relation: ``values`` (words) or ``coined`` (kind of invented name), how it is ``first`` told and ``changed``.

    How it is asked for (p: person): plainly (``asked``), in other words (``reworded``), the value ``before`` the last,
    the one that holds ``now``, and ``when`` an event took place.
    """

    first: tuple[str, ...]
    asked: tuple[str, ...]
    reworded: tuple[str, ...]
    changed: tuple[str, ...] = ()
    before: str = ""
    now: str = ""
    coined: str = ""
    values: tuple[str, ...] = ()
    details: tuple[str, ...] = ("",)
    when: str = ""


TRAITS = {
    "home": Told(
        ("{S} moved to {v} and found {x}.", "You should have seen {x} that {s} rented in {v}.",
         "After months of looking, {s} moved into {x} in {v}."),
        ("Which town did {p} move to?", "In which town does {p} rent a place?"),
        ("Where does {p} live?", "What is the name of the place that is home to {p}?"),
        ("{S} moved again, to {v} this time.", "Big news: {s} left {w} and settled down in {v}.",
         "{S} packed everything and moved from {w} to {v}."),
        "Where did {p} live before the last move?", "Where does {p} live now?", "town",
        details=("a tiny flat above a bakery", "an old house with a garden", "two rooms near the station",
                 "an attic with a view of the river"),
    ),
    "job": Told(
        ("{S} started working for {v} as {x}.", "{S} got hired by {v}, as {x} of all things.",
         "{S} signed a contract with {v} and became {x} there."),
        ("Which company did {p} start working for?", "Who hired {p}?"),
        ("Where does {p} earn a living?", "What is the name of the employer of {p}?"),
        ("{S} quit and went over to {v}.", "{S} changed jobs: goodbye {w}, hello {v}.",
         "{S} handed in notice at {w}; it was {v} from then on."),
        "Which company did {p} work for before the present one?", "Which company does {p} work for now?", "firm",
        details=("an accountant", "a gardener", "a night porter", "a translator", "a cook", "an engineer"),
    ),
    "pet": Told(
        ("{S} adopted {x} and named it {v}.", "There was chaos: {ps} new companion {v}, {x}, chewed a shoe.",
         "{S} brought {x} home from the shelter; it was called {v} already."),
        ("What did {p} name the adopted animal?", "Which name does the animal have that {p} brought home?"),
        ("How is the pet of {p} called?", "What is the name of the four-legged or feathered friend of {p}?"),
        coined="pet",
        details=("a parrot", "a kitten", "a tortoise", "a greyhound", "a ferret", "a rabbit"),
    ),
    "instrument": Told(
        ("{S} took up the {v} and practised {x}.", "{S} played the {v} {x}; my ears still hurt."),
        ("Which instrument did {p} take up?", "What did {p} practise?"),
        ("What kind of music does {p} make?", "On what does {p} play tunes?"),
        ("{S} gave up the {w} and took up the {v}.", "{S} sold the {w} and bought lessons on the {v} instead."),
        "Which instrument did {p} play before the present one?", "Which instrument does {p} play now?",
        values=("cello", "trumpet", "accordion", "harp", "flute", "banjo", "oboe", "violin", "drums", "organ",
                "clarinet", "zither"),
        details=("every evening", "all weekend", "until midnight"),
    ),
    "dish": Told(
        ("{S} said it again {x}: no dish was better than {v}.", "{S} cooked {v} {x}; it was the favourite dish."),
        ("What is the favourite dish of {p}?", "Which dish did {p} call the best?"),
        ("What does {p} like to eat most?", "Which meal would make {p} happy?"),
        ("{S} got tired of {w}; the favourite dish was {v} now.", "No more {w}: {ps} favourite dish was {v} by then."),
        "What was the favourite dish of {p} before it changed?", "What is the favourite dish of {p} now?",
        values=("mushroom dumplings", "lentil stew", "plum pancakes", "onion soup", "stuffed peppers", "fish pie",
                "saffron rice", "potato salad", "walnut noodles", "pumpkin curry", "cheese rolls", "bean chilli"),
        details=("at dinner", "yesterday", "on the phone", "with great ceremony"),
    ),
}  # fmt: skip

#: Relations between two people, by name: the bridges of two-hop questions.
TIES = {
    "boss": ("{Ps} boss turned out to be {v}.", "{S} got a new boss: {v}."),
    "best friend": ("{S} called {v} the best friend one could have.", "{Ps} best friend was {v}, since school."),
    "landlord": ("{S} paid the rent to {v}, the landlord.", "{Ps} landlord was nobody else than {v}."),
    "swimming teacher": ("{S} learnt swimming from {v}.", "{Ps} swimming teacher was {v}."),
    "dance partner": ("{S} joined a dance class, with {v} as partner.", "{Ps} dance partner was {v}."),
}

EVENTS = {
    "journey": Told(
        ("{S} went on a journey to {v} {when} and came back sunburnt.", "{S} took the train to {v} {when}.",
         "{S} was in {v} {when}, for the first time ever."),
        ("Which town did {p} travel to by train or on a journey?", "Where did {p} go on a journey?"),
        ("What was the destination of the trip that {p} made?", "Which place did {p} visit?"),
        coined="town", when="When did {p} travel to {v}?",
    ),
    "concert": Told(
        ("{S} saw {v} play live {when}.", "{S} went to a concert of {v} {when} and danced all night."),
        ("Which band did {p} see play live?", "Whose concert did {p} go to?"),
        ("Which musicians did {p} listen to from close by?", "Who was on stage when {p} danced?"),
        coined="thing", when="When did {p} see {v} live?",
    ),
    "purchase": Told(
        ("{S} bought a {v} {when}, quite a bargain.", "{S} came home with a {v} {when}."),
        ("What did {p} buy at a bargain price?", "What did {p} come home with?"),
        ("For what did {p} spend money?", "Which thing did {p} acquire?"),
        values=("telescope", "sewing machine", "canoe", "rocking chair", "camera", "tandem bicycle", "typewriter",
                "record player", "chess set", "tent", "globe", "coffee machine"),
        when="When did {p} buy the {v}?",
    ),
    "exam": Told(
        ("{S} passed the exam in {v} {when}.", "{S} took an exam in {v} {when}, with top marks."),
        ("In which subject did {p} pass an exam?", "What was the subject of the exam that {p} took?"),
        ("Which field of study was {p} tested in?", "What did {p} have to prove knowledge of?"),
        values=("botany", "bookkeeping", "astronomy", "first aid", "navigation", "Latin", "law", "geology",
                "statistics", "beekeeping"),
        when="When did {p} take the exam in {v}?",
    ),
}  # fmt: skip

TIE_ASKED = ("Who is the {tie} of {p}?", "Do you know who {p}'s {tie} is?")

KIN = (
    "sister", "brother", "cousin", "neighbour", "colleague", "uncle", "aunt", "flatmate", "nephew", "niece",
    "old schoolmate", "godmother", "grandfather", "stepson",
)  # fmt: skip
ALIAS = (
    "By the way, everybody calls {s} {v}, so I will too.",
    "{S} goes by the name {v} these days.",
    "You may call {s} {v} now, as all of us do.",
)

GREETINGS = (
    ("Hey {b}! Good to hear from you again.", "Hi {a}! It has been a while. How are things?"),
    ("Good evening, {b}! Do you have a minute?", "For you always, {a}. I just made tea."),
    ("{b}, at last! I have so much to tell you.", "Then sit down, {a}, and start at the beginning."),
    ("Hello {b}, is the line better today?", "Much better, {a}. I can hear you well."),
)
FAREWELLS = (
    ("I have to run, {b}. Talk soon!", "Take care, {a}. Say hello to everybody."),
    ("It got late. Good night, {b}!", "Good night, {a}! Sleep well."),
    ("My battery is nearly empty, so bye for now, {b}.", "Bye, {a}! I will call you next time."),
)
PROMPTS = (
    "And how is {s} doing?", "Any news from {s}?", "Tell me about {s}!", "What is {s} up to?",
    "I was thinking of {s} the other day. What is new?",
)  # fmt: skip
SELF_PROMPTS = ("And you, what is new?", "But tell me about yourself!", "How have you been, honestly?",
                "And what have you been up to?")  # fmt: skip
REACTIONS = (
    "Oh, really?", "I would never have guessed.", "That sounds just right.", "Ha, typical.", "How exciting!",
    "I am happy to hear that.", "You are joking!", "That was about time.", "Well, well.", "I have to write that down.",
    "Lovely.", "I remember the talk about that.", "Who would have thought?",
)  # fmt: skip
#: Reactions to what was just told; they repeat neither names nor values.
REPLIES = {
    "home": ("Moving is such a lot of work.", "I hope the rent is fair.", "I must visit with bread and salt."),
    "job": ("I hope they pay well.", "The first weeks are the hardest.", "New colleagues, new gossip!"),
    "pet": ("Animals turn a household upside down.", "How sweet. Does it bite?", "I want to see pictures of that."),
    "instrument": ("The neighbours must be thrilled.", "Music keeps people young.", "I would love to hear that."),
    "dish": ("Now I am hungry.", "I want the recipe.", "Tastes are a mystery."),
    "journey": ("I envy everybody who travels.", "I hope there were no delays.", "Did a souvenir come out of it?"),
    "concert": ("I never get tickets for such things.", "It must have been loud.", "I can nearly hear it."),
    "purchase": ("Where does one put such a thing?", "Money well spent, perhaps.", "I would have haggled longer."),
    "exam": ("That calls for a cake.", "So much learning at our age!", "I always shook before exams."),
    "alias": ("I will try to remember that.", "Names are funny things.", "It suits, somehow."),
    "boss": ("I hope they get along.", "Bosses come and go."),
    "best friend": ("Such friends are rare.", "That explains a lot."),
    "landlord": ("I hope the taps get repaired.", "Better than a stranger, I suppose."),
    "swimming teacher": ("Better late than never.", "And nobody drowned?"),
    "dance partner": ("I would step on all toes.", "I hope for an invitation to the ball."),
}
#: Small talk and what the other may answer.
CHAT = (
    ("It has been raining here since {day}.", "Here too. The cellar smells of wet dog."),
    ("I slept badly, the street was so loud.", "Try to nap after lunch, it works wonders."),
    ("I burnt the toast again.", "Then scrape it and call it rustic."),
    ("The tram was full of people with umbrellas.", "Everybody drips on everybody, I know."),
    ("My tomatoes are finally turning red.", "Save one for me, please."),
    ("Did you watch the match on {day}?", "Only the end, when it was hopeless."),
    ("I cannot get that silly song out of my head.", "Do not hum it, or I will catch it."),
    ("I am out of coffee, imagine.", "A tragedy. Borrow some next door."),
    ("The lift in our house is broken again.", "At least it keeps you fit."),
    ("I found an old photograph of us in a book.", "I hope my hair is not in it."),
    ("They are painting the bridge blue.", "It was prettier in green, if you ask me."),
    ("I want to sleep for a week.", "Start with one evening and no screen."),
    ("My phone fell into the soup on {day}.", "And which of the two could be saved?"),
    ("There is a new bakery at the corner.", "Tell me about the rolls when you have tried them."),
    ("The neighbours are arguing about the hedge.", "They did so ten years ago already."),
    ("I walked along the river on {day}; it did me good.", "Walking clears the head."),
    ("I still owe you a dinner.", "I have not forgotten it either."),
    ("My glasses are lost again.", "Look on your forehead first."),
    ("I am learning to like mornings.", "Let me know when you have succeeded."),
    ("The library closes early on {day} now.", "What a pity, that was my reading day."),
    ("I bought far too many lemons.", "Then there will be lemonade for all."),
    ("I dreamt that we were late for school.", "Again! It must be the cheese at night."),
    ("The radio said there will be frost.", "Then bring the geraniums inside."),
    ("My plants look sad.", "Talk to them and water them less."),
    ("I finished the crossword for once.", "You have become a scholar."),
    ("Somebody parked in front of our gate.", "Leave a kind note, with flowers on it."),
    ("I need a holiday.", "Who does not?"),
    ("The dentist was kind to me on {day}.", "That is worth a medal."),
    ("I mended the kitchen chair.", "Does it still lean to the left?"),
    ("The circus put up its tent on {day}.", "I can hear the elephants from here, in my mind."),
    ("I tried to count the stairs to the tower and gave up.", "It is two hundred and something."),
)  # fmt: skip
#: Small talk that names people, towns or firms of the world without telling anything that is asked.
DECOYS = (
    "{p} sends greetings, by the way.",
    "I dreamt of {p} last night, no idea why.",
    "{p} still has my umbrella.",
    "I saw an advertisement of {firm} on the bus.",
    "The train stood still in {town} for an hour.",
    "Somebody told me {town} is lovely in autumn.",
    "I wonder what {p} would say to all this.",
    "{firm} was in the newspaper on {day}, something about taxes.",
    "{p} asked about you the other day.",
    "We should invite {p} some time.",
    "My map of {town} is twenty years old.",
    "A postcard from {town} fell out of a book of mine.",
)
DECOY_REPLIES = (
    "Is that so?", "Small world.", "How funny, I thought of that as well.", "Let us come back to that another time.",
    "I would not worry about it.", "Ha, that figures.", "I had nearly forgotten.",
)  # fmt: skip
