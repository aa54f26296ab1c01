# ruff: noqa: SIM905 -- a blank-separated list is easier to read and to extend than hundreds of quoted words
"""Closed vocabularies of the small world: ordinary words of ours and names made from syllables.

Every word here is meant to be ONE token of the embedded tokenizer (with its leading blank), so that objects of one
relation differ in their first token and names are exactly two tokens long.
"""

from __future__ import annotations

import hashlib
import random

JOBS = tuple(
    "baker miller smith weaver potter tailor carpenter painter doctor lawyer teacher sailor fisher hunter gardener "
    "barber printer mason brewer shepherd clerk pilot nurse judge banker juggler singer dancer porter guard cook "
    "glazier".split()
)
INSTRUMENTS = tuple(
    "violin flute drum piano harp trumpet guitar organ cello horn banjo lute fiddle bagpipe oboe zither".split()
)
PETS = tuple(
    "dog cat parrot rabbit horse turtle goat ferret pigeon canary donkey hedgehog lizard snake sheep duck goose frog "
    "monkey squirrel fox badger crow mouse".split()
)
COLOURS = tuple(
    "red blue green yellow white black purple orange brown grey pink silver gold scarlet violet crimson".split()
)
FOODS = tuple(
    "bread cheese soup rice honey plums apples pears beans carrots mushrooms salmon ham butter noodles porridge "
    "dumplings pancakes olives walnuts cherries cabbage lentils pudding".split()
)
MONTHS = tuple("January February March April May June July August September October November December".split())
ITEMS = tuple(
    "lamp knife rope basket hammer candle mirror bottle ladder blanket kettle button ribbon feather whistle compass "
    "needle thimble bucket pillow lantern spoon wallet umbrella pencil coin stone bell box cup map key ring clock comb "
    "brush glove hat boot scarf belt shirt book letter stamp doll ball kite wheel nail".split()
)
TOOLS = tuple("saw plough chisel scale shovel tongs anvil loom rake axe shears brush awl lever pump crane".split())
INNS = tuple("Swan Anchor Crown Plough Bear Raven Dolphin Stag Lamb Griffin Falcon Unicorn".split())
WOODS = tuple("oak maple birch walnut cedar ash brass copper bone ivory willow cherry".split())
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
FEEDS = tuple("hay corn oats fish seeds milk worms grass barley clover".split())
BEDS = tuple("barn kitchen stable attic cellar garden cage basket shed loft".split())
VIRTUES = tuple("courage peace hope wisdom honour mercy patience truth freedom loyalty".split())
MINERALS = tuple("clay chalk rust coal berries bark roots shells ashes moss".split())
SAUCES = tuple("mustard cream vinegar pepper garlic salt sugar lemon mint ginger".split())
FLOWERS = tuple("rose lily tulip daisy poppy iris heather lilac clover thistle aster primrose".split())
PRODUCTS = tuple(
    "glass wool salt iron silk paper wine leather timber pottery lace tobacco marble copper amber soap".split()
)
NICK_ADJECTIVES = tuple("Old Little Grey Quick Silent Brave Merry Lucky Gentle Wild".split())
NICK_NOUNS = tuple("Fox Owl Bear Wolf Hawk Otter Badger Heron Hare Lion Stag Crow".split())
EVENT_ADJECTIVES = tuple("Silver Great Copper Winter Summer Royal".split())
EVENT_NOUNS = tuple("Fair Fire Flood Race Wedding".split())
EPISODE_PLACES = tuple(
    "harbour market forest mill bridge castle tower inn church school garden station library theatre island "
    "valley".split()
)


def _syllables(seed: str, starts: str, middles: str, ends: str, n: int, taken: set[str]) -> tuple[str, ...]:
    rng = random.Random(seed)
    made: list[str] = []
    while len(made) < n:
        word = rng.choice(starts.split()) + rng.choice(middles.split()) + rng.choice(ends.split())
        if word not in taken:
            taken.add(word)
            made.append(word)
    return tuple(made)


_taken: set[str] = set()
_VOWELS = "a e i o u"
FIRST_NAMES = _syllables(
    "first",
    "B Br D Dr F G H J K L M N P R S T V Z",
    _VOWELS,
    "bra da dek fa lin lo mas mir na nor ra ri sel tan vi zo",
    96,
    _taken,
)
LAST_NAMES = _syllables(
    "last", "B Bl Cr D F Gr H K Kl L M N P Qu R S St T Tr V W", _VOWELS,
    "ckford lbrook ldane ldhorn lmark lmwick ndal ngby nsett rgate rlow rnell rsk rvane stley thorp", 96, _taken,
)  # fmt: skip
TOWNS = _syllables(
    "town", "As B Dun El F G Har K L M N Or P S T Wes", "a e o u", "by cot fell ham keld mouth ster wick", 40, _taken
)
RIVERS = _syllables("river", "B D L N S T V W", "al el ir ov ul", "a en is om une", 12, _taken)
REGIONS = _syllables("region", "B D G K L M N S T V", "a e i o u", "landia mark rria sken", 10, _taken)
ORGANISATIONS = _syllables("organisation", "C D F K M N P R T V Z", "a e i o", "co dex nix rex trum vex", 24, _taken)
FEASTS = _syllables("feast", "F G H K M P S Y", "a e i o u", "dala mela rola tide", 12, _taken)
LABELS = tuple("blik dax wug fep zup tiv mop lorp kiv nem pag rud sool tam vob yan".split())


def bucket(*parts: str, modulus: int = 100) -> int:
    """A number in [0, modulus) that depends on the text alone: the split of names never changes."""
    return int.from_bytes(hashlib.sha256(" ".join(parts).encode()).digest()[:8], "big") % modulus


def all_words() -> list[str]:
    """Every closed-vocabulary word once, for the tokenizer's training text and its check."""
    groups = [value for name, value in globals().items() if name.isupper() and isinstance(value, tuple)]
    return sorted({word for group in groups for word in group})
