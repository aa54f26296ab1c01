"""Our own wording of generated companion users: what they tell, what the companion answers, what is asked later."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Something told once with a particular circumstance (a, never told twice by a user) and a value (v).

    ``asked`` (plain) and ``reworded`` (other words) ask for the value by its circumstance; ``coined`` is the kind of
    invented name that the value is, empty when it is taken from ``values``.
    """

    circumstances: tuple[str, ...]
    told: tuple[str, ...]
    replied: tuple[str, ...]
    asked: str
    reworded: str
    coined: str = ""
    values: tuple[str, ...] = ()


TITLES = tuple(
    f"The {adjective} {noun}"
    for adjective in ("Silver", "Patient", "Hollow", "Wandering", "Crooked", "Amber", "Sleepless", "Seventh")
    for noun in ("Heron", "Staircase", "Orchard", "Lantern", "Ferryman", "Winter", "Cartographer", "Bell")
)
HOBBIES = (
    "watercolour painting", "climbing", "chess", "baking bread", "birdwatching", "pottery", "cycling", "choir singing",
    "astronomy", "gardening", "fencing", "knitting", "stamp collecting", "sailing", "juggling", "calligraphy",
)  # fmt: skip

TOPICS = {
    "book": Topic(
        ("on the train", "in the library", "in the waiting room", "at the lake", "during the lunch break"),
        ("I finally finished a novel {a}; it was called {v}.", "I read {v} {a} and could not put it down.",
         "Today {a} I started a book with the title {v}."),
        ("That sounds gripping. Did the ending surprise you?", "A good choice! Who is your favourite character?",
         "I am glad it keeps you company."),
        "Which book did I read {a}?", "Do you recall the title of what I was reading {a}?", values=TITLES,
    ),
    "trip": Topic(
        ("with my cousin", "with my choir", "with my grandmother", "with two colleagues", "all by myself"),
        ("I went on a trip {a}: we wanted to see {v}.", "I came back from {v}, where I had gone {a}.",
         "What a weekend! I travelled to {v} {a}."),
        ("How lovely! Did you take many photographs?", "I hope the weather was kind to you.",
         "Travelling clears the head, does it not?"),
        "Which town did I travel to {a}?", "Where did my journey {a} take me?", coined="town",
    ),
    "purchase": Topic(
        ("jacket", "bicycle", "teapot", "armchair", "suitcase", "lamp"),
        ("I treated myself to a new {a}, a {v} one.", "After long thought I bought a {a}; I took it in {v}.",
         "The shop had only one {a} left, in {v}, so I paid for it at once."),
        ("I am sure it suits you.", "Enjoy it! Good things are worth a little money.", "Where will you put it?"),
        "What colour is the {a} that I bought?", "In what shade did I get my {a}?",
        values=("scarlet", "turquoise", "mustard yellow", "navy blue", "ivory", "moss green", "violet", "charcoal"),
    ),
    "friend": Topic(
        ("at the swimming pool", "at the language course", "on the ferry", "at the flea market", "in the lift"),
        ("I met somebody nice {a}, called {v}.", "{v} and I started talking {a} and did not stop for hours.",
         "A stranger spoke to me {a}; {v} is the name."),
        ("New friends are a gift.", "Will you meet again?", "How did the talk begin?"),
        "What is the name of the person whom I met {a}?", "Who did I get to know {a}?", coined="first",
    ),
    "dish": Topic(
        ("for my neighbours", "for my birthday guests", "for my brother", "for the office party", "just for me"),
        ("I cooked {v} {a} and nothing was left over.", "The kitchen is a mess, since I made {v} {a}.",
         "You would laugh: I tried {v} {a} and forgot the salt."),
        ("I can almost smell it!", "Cooking for people you like is the best kind.", "Practice makes perfect."),
        "What did I cook {a}?", "Which meal did I prepare {a}?",
        values=("mushroom dumplings", "lentil stew", "plum pancakes", "onion soup", "stuffed peppers", "fish pie",
                "saffron rice", "potato salad", "walnut noodles", "pumpkin curry"),
    ),
    "worry": Topic(
        ("at work", "at home", "at the garage", "with my landlord", "in the choir"),
        ("Something upset me {a} today: {v}.", "I am a little down; {a} there was trouble, {v}.",
         "It was a hard day {a}, because of this: {v}."),
        ("I am sorry to hear that. Take a slow breath first.", "That would trouble me as well. Shall we make a plan?",
         "Thank you for telling me. Rest a little tonight."),
        "What went wrong {a}?", "Which problem bothered me {a}?",
        values=("a parcel was lost", "the heating broke", "my notes were deleted", "somebody shouted at me",
                "a bill was twice as high", "my plan was rejected", "the keys were stolen"),
    ),
    "pet": Topic(
        ("the parrot", "the kitten", "the tortoise", "the puppy", "the rabbit"),
        ("My sister asked me to name {a} that she adopted; I chose {v}.", "I looked after {a}, who is called {v}.",
         "Imagine, {a} of my flatmate escaped! We found {v} under the stairs."),
        ("What a sweet story.", "Animals keep us on our toes.", "I hope all is calm again."),
        "What is the name of {a}?", "How is {a} called?", coined="pet",
    ),
}  # fmt: skip

#: What the companion recommended: the answer stands in its reply.
ADVICE = Topic(
    ("a film for a rainy evening", "a board game for four", "a podcast about space", "an app for learning Greek",
     "a song for running", "a museum for children"),
    ("Can you recommend {a}?", "I am looking for {a}. Any idea?", "Help me, I need {a}."),
    ("I recommend {v}; people speak well of it.", "Then try {v}, I think you will like it.",
     "My choice for you would be {v}."),
    "You once recommended {a} to me. What was it called?", "What did you suggest when I was looking for {a}?",
    coined="thing",
)  # fmt: skip

CHAT = (
    ("Good morning! I slept well for once.", "Good morning! Then the day can only be good."),
    ("It has been raining all day here.", "A fine excuse for tea and a blanket."),
    ("I am bored. Tell me something.", "Did you know that octopuses have three hearts?"),
    ("I had {hobby} on my mind all day.", "It is good to have something to look forward to."),
    ("Do you think {hobby} is hard to learn?", "Every hobby is hard for a week and easy after a year."),
    ("I could practise {hobby} only for ten minutes today.", "Ten minutes count."),
    ("The tram was late again.", "How annoying. Did you have something to read with you?"),
    ("I am off to bed.", "Sleep well! We can go on tomorrow."),
    ("What do you do all day?", "I wait for your messages and think about them."),
    ("I drank too much coffee.", "A glass of water and a walk may help."),
    ("My neighbour plays the trumpet at night.", "Perhaps a friendly note in the letter box would do."),
    ("I feel a little lonely today.", "I am here. Would you like to call somebody you like?"),
    ("Thank you for listening.", "Always. It is what I am for."),
    ("I should exercise more.", "A short walk after lunch is a fine start."),
    ("The sunset was purple this evening.", "I wish I could have seen it."),
    ("I do not know what to wear tomorrow.", "Something warm, to be on the safe side."),
)
GREETING = (
    "Hello, my name is {name}. I like {one} and {two}.",
    "Hello {name}, nice to meet you! Tell me more about {one} whenever you like.",
)
PERSONALITIES = ("cheerful and curious", "quiet and thoughtful", "warm and a little shy", "bold and quick-witted")
STYLES = ("short and friendly", "slow and careful", "lively", "dry and humorous")
