"""LoCoMo, MuSiQue's sample and MemoryBank's users as they are: the counts, the dirt, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from workbench_datasets import companions, locomo, musique, registry


def need(name: str) -> None:
    """Skip where a file of the collection is absent, naming it."""
    missing = [file for file, place in registry.where(name).items() if place is None]
    if missing:
        pytest.skip(f"real data absent: {name}/{missing[0]}; see `workbench data list` for where it goes")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that holds none of the files."""
    monkeypatch.setattr(registry, "folders", lambda: [tmp_path])
    return tmp_path


# -- LoCoMo ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talks() -> locomo.Locomo:
    need("locomo")
    return locomo.load()


def test_locomo_counts(talks: locomo.Locomo) -> None:
    counts = talks.counts()
    assert len(talks) == 10
    assert len(talks.questions) == 1986
    assert (counts["sessions"].min(), counts["sessions"].max()) == (19, 32)
    assert (counts["turns"].min(), counts["turns"].max()) == (369, 689)
    assert (round(counts["words"].min(), -2), round(counts["words"].max(), -2)) == (8000, 16200)
    by_category = Counter(question.category for question in talks.questions)
    assert by_category == {1: 282, 2: 321, 3: 96, 4: 841, 5: 446}
    assert counts["adversarial"].sum() == 446
    assert counts["multi-hop"].sum() == 282


def test_locomo_evidence_is_read_tolerantly_and_the_rest_is_reported(talks: locomo.Locomo) -> None:
    report = talks.evidence_report()
    assert len(report) == 9
    read = {row.entry: (row.read, row.dropped) for row in report.itertuples()}
    assert read["D8:6; D9:17"] == (("D8:6", "D9:17"), ())
    assert read["D9:1 D4:4 D4:6"] == (("D9:1", "D4:4", "D4:6"), ())
    assert read["D:11:26"] == (("D11:26",), ())
    assert read["D30:05"] == (("D30:5",), ())
    assert read["D"] == ((), ("D",))
    assert read["D10:19"] == ((), ("D10:19",))
    assert read["D4:36"] == ((), ("D4:36",))
    for dialogue in talks:
        keys = {turn.key for turn in dialogue.turns}
        assert len(keys) == len(dialogue.turns)
        assert all(set(question.evidence) <= keys for question in dialogue.questions)


def test_locomo_traps_are_no_reference(talks: locomo.Locomo) -> None:
    for question in talks.questions:
        if question.category == 5:
            assert question.answer == "not mentioned"
            assert question.trap
            assert question.trap != question.answer
        else:
            assert question.trap is None
            assert question.answer


def test_locomo_turns_have_times_speakers_and_captions(talks: locomo.Locomo) -> None:
    first = talks.dialogues[0]
    assert first.turns[0].time == datetime(2023, 5, 8, 13, 56, tzinfo=UTC).timestamp()
    for dialogue in talks:
        times = [turn.time for turn in dialogue.turns]
        assert times == sorted(times)
        assert {turn.speaker for turn in dialogue.turns} == set(dialogue.speakers)
    shown = next(turn for turn in first.turns if turn.caption)
    assert f"[shows a photo: {shown.caption}]" in shown.line


def test_locomo_missing_file_says_which_and_whence(nowhere: Path) -> None:
    with pytest.raises(registry.DataMissing, match=r"locomo/locomo10\.json .*WujiangXu/AgenticMemory") as caught:
        locomo.load()
    assert str(nowhere / "locomo" / "locomo10.json") in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no file"):
        locomo.load(nowhere / "other.json")


def _locomo_file(folder: Path, **changes: object) -> Path:
    entry = {
        "sample_id": "x",
        "conversation": {
            "speaker_a": "A", "speaker_b": "B", "session_1_date_time": "1:00 pm on 2 May, 2023",
            "session_1": [{"dia_id": "D1:1", "speaker": "A", "text": "Hello."}],
            "session_2_date_time": "1:00 pm on 3 May, 2023",
        },
        "qa": [{"question": "Who?", "answer": 7, "evidence": ["D1:1", "D1:1"], "category": 4}],
    }  # fmt: skip
    path = folder / "talk.json"
    path.write_text(json.dumps([{**entry, **changes}]))
    return path


def test_locomo_small_file(tmp_path: Path) -> None:
    (dialogue,) = locomo.load(_locomo_file(tmp_path))
    assert dialogue.sessions == 1, "a date without turns is no session"
    assert dialogue.questions[0].answer == "7"
    assert dialogue.questions[0].evidence == ("D1:1",)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"qa": [{"question": "Q", "answer": "", "evidence": [], "category": 9}]}, "category 9"),
        ({"qa": [{"question": "Q", "evidence": [], "category": 1}]}, "KeyError at 'answer'"),
        ({"conversation": {}}, "KeyError at 'speaker_a'|not a LoCoMo file"),
        ({"conversation": {"session_1": [], "session_1_date_time": "yesterday"}}, "session date 'yesterday'"),
    ],
)
def test_locomo_other_forms_are_refused(tmp_path: Path, changes: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        locomo.load(_locomo_file(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00bad", b""])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        locomo.load(tmp_path / "broken.json")


# -- MuSiQue -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> musique.Corpus:
    need("hipporag")
    return musique.load()


def test_musique_counts(corpus: musique.Corpus) -> None:
    counts = corpus.counts()
    assert counts == {"passages": 1890, "questions": 100, "triples": 17_234, "malformed": 185, "2-hop": 68,
                      "3-hop": 27, "4-hop": 5}  # fmt: skip
    assert [passage.id for passage in corpus.passages] == list(range(1890))


def test_musique_gold_passages_hold_the_answer(corpus: musique.Corpus) -> None:
    for question in corpus.questions:
        assert len(question.evidence) == question.hops == len(question.chain)
        texts = " ".join(corpus.passages[index].passage for index in question.evidence).lower()
        assert any(answer.lower() in texts for answer in question.answers), question
        assert question.answers[0] == question.answer


def test_musique_triples_have_three_parts(corpus: musique.Corpus) -> None:
    assert all(len(triple) == 3 for passage in corpus.passages for triple in passage.triples)
    assert all(len(one) != 3 for passage in corpus.passages for one in passage.malformed)
    assert sum(not passage.entities for passage in corpus.passages) < 100


def test_case_study(corpus: musique.Corpus) -> None:
    case = musique.case_study()
    assert case.counts()["passages"] == 43
    (question,) = case.questions
    assert "Alzheimer" in question.text
    assert set(question.answers) >= {"Robert Malenka"}
    assert {case.passages[i].title for i in question.evidence} == {"Robert Malenka", "Thomas C. S\u00fcdhof"}


def test_musique_missing_files_say_which(nowhere: Path) -> None:
    with pytest.raises(registry.DataMissing, match=r"hipporag/musique_train\.json"):
        musique.load()
    with pytest.raises(registry.DataMissing, match=r"hipporag/case_study_university\.json"):
        musique.case_study()
    with pytest.raises(registry.DataMissing, match="musique_train"):
        musique.load(nowhere)


def _musique_files(folder: Path, *, corpus: list, extracted: list, asked: list) -> Path:
    for name, content in ((musique.CORPUS, corpus), (musique.TRIPLES, {"docs": extracted}), (musique.QUESTIONS, asked)):
        (folder / name).write_text(json.dumps(content))
    return folder


PASSAGE = {"title": "T", "text": "x y"}
EXTRACTED = {**PASSAGE, "extracted_entities": ["T"], "extracted_triples": [["T", "is", "x"], ["T", "y"]]}
ASKED = {"id": "2hop__1", "question": "Q?", "answer": "x", "answer_aliases": ["X"], "question_decomposition": [],
         "paragraphs": [{"title": "T", "paragraph_text": "x y", "is_supporting": True}]}  # fmt: skip


def test_musique_malformed_triples_are_kept_apart(tmp_path: Path) -> None:
    made = musique.load(_musique_files(tmp_path, corpus=[PASSAGE], extracted=[EXTRACTED], asked=[ASKED]))
    assert made.passages[0].triples == (("T", "is", "x"),)
    assert made.passages[0].malformed == (("T", "y"),)
    assert made.questions[0].answers == ("x", "X")


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"corpus": [PASSAGE, {"title": "U", "text": ""}], "extracted": [EXTRACTED], "asked": []}, "'U'"),
        ({"corpus": [], "extracted": [], "asked": [ASKED]}, "supporting passage 'T'"),
        ({"corpus": [PASSAGE], "extracted": [PASSAGE], "asked": []}, "extracted_triples"),
        ({"corpus": [PASSAGE], "extracted": [EXTRACTED], "asked": [{**ASKED, "id": "first"}]}, "number of hops"),
        ({"corpus": [PASSAGE], "extracted": [EXTRACTED], "asked": [{**ASKED, "id": 7}]}, "another form"),
    ],
)
def test_musique_files_that_do_not_belong_together(tmp_path: Path, files: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        musique.load(_musique_files(tmp_path, **files))


# -- MemoryBank's users ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def users() -> companions.Companions:
    need("memorybank")
    return companions.load()


def test_companions_counts(users: companions.Companions) -> None:
    assert (len(users), len(users.exchanges), len(users.probes), len(users.dated)) == (15, 566, 100, 35)
    assert all(user.name == user.name.strip() and user.probes for user in users)
    assert {user.name for user in users} >= {"Jason", "Linda", "Ivy", "Roland"}
    per_user = [len(user.exchanges) for user in users]
    assert (min(per_user), max(per_user)) == (17, 52)
    days = [exchange.day for exchange in users.exchanges]
    assert (min(days), max(days)) == (date(2023, 4, 27), date(2023, 5, 6))


def test_companions_keys_times_and_gold_days(users: companions.Companions) -> None:
    keys = [exchange.key for exchange in users.exchanges]
    assert len(set(keys)) == 566
    assert "John Zhang_2023-04-27_0" in keys
    silent = []
    for user in users:
        times = [exchange.time for exchange in user.exchanges]
        assert times == sorted(set(times))
        silent += [(user.name, probe.day) for probe in user.probes if probe.day and probe.day not in user.days]
        assert {(probe.answer, probe.evidence) for probe in user.probes} == {(None, ())}
    assert silent == [("John Zhang", date(2023, 5, 5))], "the file has that day, without any talk"


def test_companions_missing_file_says_which(nowhere: Path) -> None:
    with pytest.raises(registry.DataMissing, match=r"memorybank/memory_bank_en\.json"):
        companions.load()


def _bank(folder: Path, history: object, probes: str = '{" Ann ": ["What on May 2nd?"]}') -> Path:
    (folder / companions.HISTORY).write_text(json.dumps({" Ann ": {"history": history}}))
    (folder / companions.PROBES).write_text(probes + "\n\n")
    return folder


TALK = [{"query": " Hi ", "response": "Hello"}]


def test_companions_small_file(tmp_path: Path) -> None:
    (user,) = companions.load(_bank(tmp_path, {"2023-05-02": TALK, "2023-05-01": TALK}))
    assert user.name == "Ann"
    assert [e.key for e in user.exchanges] == ["Ann_2023-05-01_0", "Ann_2023-05-02_0"]
    assert user.exchanges[0].text == "Ann: Hi\nAI: Hello"
    assert user.probes[0].day == date(2023, 5, 2)


@pytest.mark.parametrize(
    ("history", "probes", "match"),
    [
        ({"2 May": TALK}, "{}", r"Ann: the date '2 May' is not of the form"),
        ({"2023-02-30": TALK}, "{}", r"'2023-02-30'"),
        ({"2023-05-01": [{"query": "x"}]}, "{}", "exchange 0: expected query and response"),
        ({"2023-05-01": [{"query": "x", "response": None}]}, "{}", "query and response as text"),
        ({"2023-05-01": 3}, "{}", "Ann, 2023-05-01: expected a list of exchanges"),
        ([], "{}", "Ann: has no history"),
        ({}, '{"Ann": "What?"}', "line 1"),
        ({}, '{"Bob": ["?"]}', "without a history: Bob"),
        ({}, "[1]", "line 1"),
        ({}, "{oops", "line 1"),
    ],
)
def test_companions_refuse(tmp_path: Path, history: object, probes: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        companions.load(_bank(tmp_path, history, probes))


def test_companions_refuse_another_shape(tmp_path: Path) -> None:
    _bank(tmp_path, {})
    (tmp_path / companions.HISTORY).write_text("[]")
    with pytest.raises(ValueError, match="expected one object"):
        companions.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "day"),
    [("on May 1st?", date(2023, 5, 1)), ("April 30th", date(2023, 4, 30)), ("May I ask?", None), ("on May 9th", None),
     ("in May 2023", None), ("on 1 May", None)],
)  # fmt: skip
def test_named_days(text: str, day: date | None) -> None:
    assert companions.named_day(text, [date(2023, 5, 1), date(2023, 4, 30)]) == day
