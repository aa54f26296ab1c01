"""Generated worlds: sizes as promised, gold that can be recomputed, and questions that keep their secret."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench_datasets import _companions_text as companions_text
from workbench_datasets import _dialogue_world_text as dialogue_text
from workbench_datasets.bridge_world import ATTRIBUTES, bridge_world
from workbench_datasets.companions import companions_world, named_day
from workbench_datasets.dialogue_world import KINDS, NEVER_SAID, Query, Turn, WorldState, dialogue_world
from workbench_datasets.passage_world import extract, passage_world

SEEDS = st.integers(min_value=0, max_value=10**9)
FEW = settings(max_examples=12, deadline=None)


# -- bridge world ------------------------------------------------------------------------------------------------------


def test_bridge_world_has_the_sizes_of_the_card() -> None:
    world = bridge_world(0)
    assert Counter(note.kind for note in world.notes) == {
        "relation": 40, "distractor": 160, **dict.fromkeys(ATTRIBUTES, 40)
    }  # fmt: skip
    assert Counter(question.hops for question in world.questions) == {2: 40, 1: 160}
    assert [note.id for note in world.notes] == list(range(360))
    assert Counter(q.attribute for q in world.questions if q.hops == 2) == dict.fromkeys(ATTRIBUTES, 10)


@FEW
@given(SEEDS)
def test_bridge_questions_take_exactly_their_evidence(seed: int) -> None:
    world = bridge_world(seed, people=12, distractors=20, one_hop=48)
    for question in world.questions:
        last = world.notes[question.evidence[-1]]
        holders = [note.id for note in world.notes if question.answer in note.text]
        assert holders == [last.id]
        assert last.kind == question.attribute
        assert question.subject in question.text
        if question.hops == 2:
            relation = world.notes[question.evidence[0]]
            assert question.bridge not in question.text
            assert relation.entities == (question.subject, question.bridge)
            assert question.subject not in last.text
            assert question.bridge in last.text
        else:
            assert question.subject in last.text
            assert len(question.evidence) == 1


@FEW
@given(SEEDS)
def test_bridge_notes_name_their_entities(seed: int) -> None:
    world = bridge_world(seed, people=5, distractors=10, one_hop=4)
    assert world == bridge_world(seed, people=5, distractors=10, one_hop=4)
    for note in world.notes:
        assert all(name in note.text for name in note.entities)
        named = {person for person in world.people if person in note.text}
        assert named == set(note.entities) & set(world.people)


def test_bridge_shuffle_and_names_differ_by_seed() -> None:
    one, two = bridge_world(1), bridge_world(2)
    assert not {note.text for note in one.notes} & {note.text for note in two.notes}
    kinds = [note.kind for note in one.notes[:40]]
    assert len(set(kinds)) > 3, "the notes are not shuffled"


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"people": 2}, "people=2"), ({"distractors": -1}, "distractors=-1"), ({"one_hop": 161}, "from 0 to 160"),
     ({"people": True}, "people=True"), ({"people": 500}, "from 3 to 120")],
)  # fmt: skip
def test_bridge_world_refuses(wrong: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bridge_world(0, **wrong)


# -- passage world -----------------------------------------------------------------------------------------------------


def test_passage_world_has_the_sizes_of_the_card() -> None:
    world = passage_world(0)
    assert len(world.passages) == 300
    assert Counter(q.kind for q in world.questions) == {"two-hop": 50, "path-finding": 25, "one-hop": 25}
    assert {len(passage.triples) for passage in world.passages} <= {3, 4, 5}
    staff = Counter(world.canonical[t[2]] for p in world.passages for t in p.triples if t[1] == "works for")
    students = Counter(t[2] for p in world.passages for t in p.triples if t[1] == "studies")
    assert set(staff.values()) == {20}
    assert all(17 <= n <= 23 for n in students.values())


@FEW
@given(SEEDS, st.booleans())
def test_passages_say_exactly_their_triples(seed: int, aliases: bool) -> None:
    world = passage_world(seed, 120, aliases, two_hop=12, path_finding=6, one_hop=12)
    for index, passage in enumerate(world.passages):
        assert passage.id == index
        assert extract(passage.text) == list(passage.triples)
        assert all(entity in passage.text for entity in passage.entities)
        assert {world.canonical[entity] for entity in passage.entities} >= {passage.about}


def test_extract_reads_nothing_from_other_text() -> None:
    assert extract("It was a dark night. Nobody came. The rain went on and on.") == []
    assert extract("") == []


def _told(world: object) -> list[tuple[str, str, str, int]]:
    """Every triple under full names, with its passage."""
    full = world.canonical  # type: ignore[attr-defined]
    return [
        (full.get(s, s), r, full.get(o, o), passage.id)
        for passage in world.passages  # type: ignore[attr-defined]
        for s, r, o in passage.triples
    ]


PATHS = {
    "region of birth": ("was born in", "lies in"), "river of birthplace": ("was born in", "stands on"),
    "seat of maker": ("is made by", "has its seat in"), "birthplace of inventor": ("was invented by", "was born in"),
    "employer of inventor": ("was invented by", "works for"), "region of seat": ("has its seat in", "lies in"),
}  # fmt: skip


@FEW
@given(SEEDS)
def test_passage_gold_follows_from_the_triples(seed: int) -> None:
    world = passage_world(seed, 150)
    told = _told(world)
    for question in world.questions:
        if question.kind == "two-hop":
            first, second = PATHS[question.family]
            (subject,) = question.entities
            found = [(b[2], (a[3], b[3])) for a in told if a[:2] == (subject, first)
                     for b in told if b[:2] == (a[2], second)]  # fmt: skip
        elif question.kind == "path-finding":
            institute, topic = question.entities
            found = [(a[0], (a[3], b[3])) for a in told if a[1:3] == ("works for", institute)
                     for b in told if b[:3] == (a[0], "studies", topic)]  # fmt: skip
        else:
            (passage,) = question.evidence
            found = [(t[2], (t[3],)) for t in told if t[3] == passage and t[2] == question.answer]
        assert found == [(question.answer, question.evidence)], question
        assert question.answer not in question.text


def test_aliases_stand_for_a_third_of_the_mentions_and_can_be_left_out() -> None:
    def share(aliases: bool) -> float:
        said = [s in world.canonical and world.canonical[s] != s for world in [passage_world(3, aliases=aliases)]
                for p in world.passages for t in p.triples for s in (t[0], t[2]) if s in world.canonical]  # fmt: skip
        return sum(said) / len(said)

    assert 0.25 < share(True) < 0.35
    assert share(False) == 0


def test_no_passage_names_both_ends_of_a_path() -> None:
    world = passage_world(4)
    for question in world.questions:
        if question.kind == "path-finding":
            institute, topic = (end.split()[0] for end in question.entities)
            assert not [p for p in world.passages if institute in p.text and f" {topic} " in f" {p.text} "]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((0, 60), "passages=60"), ((0, "300"), "passages='300'"), ((0, 120, True, 50), "positional")],
)
def test_passage_world_refuses(arguments: tuple, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        passage_world(*arguments)
    with pytest.raises(ValueError, match="path_finding=26"):
        passage_world(0, path_finding=26)


# -- dialogue world ----------------------------------------------------------------------------------------------------


def test_dialogue_world_has_the_sizes_of_the_card() -> None:
    world = dialogue_world(0)
    assert len(world.turns) == 240
    assert len(world.questions) == 200
    assert world.sessions == 6
    counts = Counter(question.kind for question in world.questions)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 10
    assert [turn.key for turn in world.turns[38:42]] == ["D1:39", "D1:40", "D2:1", "D2:2"]
    times = [turn.time for turn in world.turns]
    assert times == sorted(set(times))
    assert all(a.speaker != b.speaker for a, b in zip(world.turns, world.turns[1:]) if a.session == b.session)
    assert 0.3 < sum(not turn.facts for turn in world.turns) / 240 < 0.7, "distractors between the facts"


def _recompute(turns: list[Turn], query: Query) -> str:
    """The answer by going through what was said, one fact after the other: no index, no class."""
    said = [(fact, turn) for turn in turns for fact in turn.facts]

    def full(name: str) -> str:
        return next((fact.subject for fact, _ in said if fact.relation == "alias" and fact.value == name), name)

    if query.operation == "follow":
        bridge = [fact.value for fact, _ in said if (full(fact.subject), fact.relation) == (query.subject, query.via)]
        return _recompute(turns, Query("value", bridge[-1], query.relation)) if bridge else NEVER_SAID
    told = [fact for fact, _ in said if (full(fact.subject), fact.relation) == (full(query.subject), query.relation)]
    if len(told) < (2 if query.operation == "previous" else 1):
        return NEVER_SAID
    if query.operation == "date":
        day = datetime.fromtimestamp(told[-1].day, UTC)
        return f"{day.day} {day:%B %Y}"
    return told[-2].value if query.operation == "previous" else told[-1].value


@FEW
@given(SEEDS)
def test_gold_answers_are_recomputed_from_the_turns_up_to_the_question(seed: int) -> None:
    world = dialogue_world(seed, sessions=4, turns=24, questions=80, midway=0.4)
    assert world == dialogue_world(seed, sessions=4, turns=24, questions=80, midway=0.4)
    for question in world.questions:
        before = [turn for turn in world.turns if turn.time <= question.time]
        assert _recompute(before, question.query) == question.answer == question.answers[0]
        assert set(question.evidence) <= {turn.key for turn in before}


@FEW
@given(SEEDS)
def test_evidence_is_enough_and_none_of_it_too_much(seed: int) -> None:
    world = dialogue_world(seed, sessions=4, turns=24, questions=80)
    for question in world.questions:
        needed = [world.turn(key) for key in question.evidence]
        assert bool(needed) == (question.kind != "never-said")
        if needed:
            assert WorldState(needed).find(question.query).answer == question.answer
        for left_out in question.evidence:
            others = [turn for turn in world.turns if turn.key != left_out]
            assert WorldState(others).find(question.query).answer != question.answer


@FEW
@given(SEEDS)
def test_facts_stand_in_the_text_that_carries_them(seed: int) -> None:
    world = dialogue_world(seed, sessions=3, turns=20)
    for turn in world.turns:
        for fact in turn.facts:
            assert fact.value in turn.text
            assert fact.subject in turn.text or fact.subject == turn.speaker
    for question in world.questions:
        if question.evidence and question.kind != "dated":
            assert any(question.answer in world.turn(key).text for key in question.evidence)
        if question.kind == "two-hop":
            bridge = _recompute(world.turns, Query("value", question.query.subject, question.query.via or ""))
            assert bridge not in question.text
        assert question.answer not in question.text


def _day(phrase: str, today: date) -> date:
    """What a phrase for a day means when it is said ``today``."""
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    fixed = {"yesterday": 1, "the day before yesterday": 2, "a week ago": 7}
    if phrase in fixed:
        return today - timedelta(days=fixed[phrase])
    if phrase.startswith("last "):
        return max(d for d in (today - timedelta(days=n) for n in range(1, 8)) if days[d.weekday()] == phrase[5:])
    if phrase.endswith("days ago"):
        return today - timedelta(days=int(phrase.split()[0]))
    return datetime.strptime(f"{phrase[3:]} {today.year}", "%d %B %Y").date()


_PHRASE = re.compile(r"the day before yesterday|yesterday|a week ago|last \w+day|\d+ days ago|on \d+ [A-Z]\w+")


@pytest.mark.parametrize("seed", range(4))
def test_days_of_events_are_those_that_the_words_mean(seed: int) -> None:
    seen = set()
    for turn in dialogue_world(seed).turns:
        for fact in turn.facts:
            if fact.day is not None:
                sentence = turn.text[turn.text.index(fact.value) :]
                phrase = _PHRASE.search(sentence)
                assert phrase, turn.text
                today = datetime.fromtimestamp(turn.time, UTC).date()
                assert _day(phrase[0], today) == datetime.fromtimestamp(fact.day, UTC).date(), turn.text
                seen.add(phrase[0].split()[0])
    assert len(seen) >= 3


def test_paraphrases_share_fewer_words_with_the_evidence() -> None:
    def overlap(kind: str) -> float:
        shares = []
        for seed in range(5):
            world = dialogue_world(seed)
            names = {*world.people, *world.speakers}
            for question in world.questions:
                if question.kind == kind:
                    asked = set(re.findall(r"\w+", question.text)) - names
                    said = set(re.findall(r"\w+", world.turn(question.evidence[0]).text))
                    shares.append(len(asked & said) / len(asked))
        return sum(shares) / len(shares)

    assert overlap("paraphrase") < overlap("one-hop")


def test_small_talk_repeats_rarely() -> None:
    world = dialogue_world(1)
    texts = Counter(turn.text for turn in world.turns)
    assert max(texts.values()) <= 3
    assert len(texts) > 200


def test_the_pasted_dialogue_has_every_turn_under_its_date() -> None:
    world = dialogue_world(2, sessions=2, turns=10)
    lines = world.text().splitlines()
    assert len(lines) == 22
    assert lines[0] == "Session 1, Monday 4 March 2024"
    assert lines[1] == world.turns[0].line


def test_every_relation_has_replies_and_wordings() -> None:
    told = {*dialogue_text.TRAITS, *dialogue_text.TIES, *dialogue_text.EVENTS, "alias"}
    assert set(dialogue_text.REPLIES) == told
    for about in dialogue_text.TRAITS.values():
        assert bool(about.changed) == bool(about.before) == bool(about.now)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"sessions": 0}, "sessions=0"), ({"turns": 3}, "turns=3"), ({"facts": 0.9}, "facts=0.9"),
     ({"midway": -1}, "midway=-1"), ({"questions": 1.5}, "questions=1.5"), ({"facts": True}, "facts=True")],
)  # fmt: skip
def test_dialogue_world_refuses(wrong: dict, match: str) -> None:
    with pytest.raises(ValueError, match=re.escape(match)):
        dialogue_world(0, **wrong)


def test_unknown_turns_and_operations_are_refused() -> None:
    world = dialogue_world(0, sessions=1, turns=8)
    with pytest.raises(ValueError, match="D9:1"):
        world.turn("D9:1")
    with pytest.raises(ValueError, match="guess"):
        world.state().find(Query("guess", world.speakers[0], "home"))


@pytest.mark.parametrize("size", [{"sessions": 1, "turns": 4}, {"sessions": 30, "turns": 20}, {"facts": 0.05}])
def test_other_sizes_work(size: dict) -> None:
    world = dialogue_world(7, **size)
    assert len(world.turns) == size.get("sessions", 6) * size.get("turns", 40)
    never = sum(question.kind == "never-said" for question in world.questions)
    assert 0 < never <= 1 + 0.25 * len(world.questions)


# -- companions --------------------------------------------------------------------------------------------------------


def test_companions_world_has_the_sizes_of_the_card() -> None:
    made = companions_world(0)
    assert (len(made), len(made.exchanges), len(made.probes)) == (6, 240, 60)
    for user in made:
        assert len(user.days) == 10
        assert len(user.probes) == 10
        assert sum(probe.kind == "never-said" for probe in user.probes) == 2
        assert set(user.about) == {"hobbies", "personality", "speaking_style"}


def _tellings(asked: str) -> list[str]:
    """Patterns of everything that would tell what a probe asks for."""
    lines = []
    for topic in (*companions_text.TOPICS.values(), companions_text.ADVICE):
        for a in topic.circumstances:
            if any(asked.lower().endswith(line.format(a=a).lower()) for line in (topic.asked, topic.reworded)):
                told = [re.escape(line).replace(r"\{a\}", re.escape(a)).replace(r"\{v\}", ".+") for line in topic.told]
                lines += [f"(?i:{line})" for line in told]
    assert lines, asked
    return lines


@FEW
@given(SEEDS)
def test_companions_gold_stands_in_one_exchange(seed: int) -> None:
    for user in companions_world(seed, users=3):
        talk = {exchange.key: exchange for exchange in user.exchanges}
        assert len(talk) == 40
        for probe in user.probes:
            if probe.kind == "never-said":
                assert probe.answer == NEVER_SAID
                assert not probe.evidence
                assert not [e for e in talk.values() for line in _tellings(probe.text) if re.fullmatch(line, e.query)]
                continue
            assert [e.key for e in talk.values() for line in _tellings(probe.text) if re.fullmatch(line, e.query)]
            (key,) = probe.evidence
            assert str(probe.answer).lower() in talk[key].text.lower()
            assert probe.day in (None, talk[key].day)
            assert named_day(probe.text, list(user.days)) == probe.day


def test_companions_world_refuses() -> None:
    with pytest.raises(ValueError, match="tell only 1 things"):
        companions_world(0, days=1, exchanges=2)
    with pytest.raises(ValueError, match="never=3"):
        companions_world(0, probes=2, never=3)
    assert companions_world(5) == companions_world(5) != companions_world(6)
