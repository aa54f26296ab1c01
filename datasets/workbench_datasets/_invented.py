"""Names that nobody bears, coined from syllables: none is part of another, so an answer is found by its name alone."""

from __future__ import annotations

import random
from collections.abc import Iterable

# Beginnings, middles and endings of a kind of name.
_PARTS: dict[str, tuple[str, str, str]] = {
    "first": ("Ad Bel Cal Dor El Fen Gar Hal Il Jor Kel Lor Mir Nel Or Pel Quin Ros Sab Tam Ul Ver Wen Yor Zel",
              "a e i o u", "bra dek fa lin mas nor ra ric sel tan vi zo"),
    "last": ("Bar Bren Cor Dal Dren Fal Gol Har Hol Kar Lam Lun Mar Mor Nar Pen Ral Rin Sal Sten Tal Tor Val Wil",
             "a e o i", "brook dane field gate horn ley low mark mont nell rick shaw stone vane wick worth"),
    "town": ("As Bir Cor Dun El Fer Gris Har Is Kel Lang Mor Nor Or Pol Rav Sken Thor Ul Wes", "a e i o u",
             "bury cot dale fell ham keld mouth port stead ster ton vik"),
    "region": ("Ab Bor Cal Dra Es Fal Gar Ist Kor Lu Mal Nev Or Pra Sel Tar Ur Ves", "a e i o u",
               "dria landia lonia mark nesia rria sken thia via"),
    "firm": ("Alt Bex Cad Dynt Fex Grav Hex Kald Lux Merk Nort Orb Plex Quor Sint Trix Vant Zen", "a e i o u",
             "com dex gen lor nex plan rix sol tec vor"),
    "thing": ("Am Bri Cla Dre Fli Glo Kro Lis Mel Nym Pri Quo Sha Spin Tre Twi Vel Wis Zor", "a e i o u el in or",
              "bex dine fin gon let mic nel pin rad set tril wan"),
    "pet": ("Bib Chip Dob Fid Gig Hob Jup Kip Lul Mop Nib Pog Ruf Snor Tib Wob Zig", "a e i o u el in",
            "bert by dle kin lo mo nny per ster zle"),
    "river": ("Al Bren Dov Er Gar Il Lav Mes Nid Or Sar Tam Ul Ven Wen", "a e i o u", "der lin mer ne nor ros ven"),
}  # fmt: skip


class Coiner:
    """Coins names of a kind; what it has given once, or any part or extension of it, it never gives again."""

    def __init__(self, rng: random.Random, taken: Iterable[str] = ()):
        self.rng = rng
        self._taken = [name.lower() for name in taken]
        self._given: dict[str, int] = {}
        self._order = {kind: rng.sample(parts[0].split(), len(parts[0].split())) for kind, parts in _PARTS.items()}

    def coin(self, kind: str) -> str:
        """One new word of ``kind``: first, last, town, region, firm, thing, pet or river.

        Beginnings take turns, so that names of a kind look as different as they can.
        """
        _, *rest = (group.split() for group in _PARTS[kind])
        starts = self._order[kind]
        for turn in range(self._given.get(kind, 0), self._given.get(kind, 0) + 5_000):
            word = starts[turn % len(starts)] + "".join(self.rng.choice(group) for group in rest)
            low = word.lower()
            if not any(low in other or other in low for other in self._taken):
                self._taken.append(low)
                self._given[kind] = turn + 1
                return word
        raise ValueError(f"no {kind} name is left after {self._given.get(kind, 0)}: ask for a smaller world")

    def coins(self, kind: str, n: int) -> list[str]:
        return [self.coin(kind) for _ in range(n)]

    def people(self, n: int) -> list[str]:
        """Full names; no two people share a first or a last name."""
        return [f"{first} {last}" for first, last in zip(self.coins("first", n), self.coins("last", n))]
