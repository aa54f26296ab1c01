"""Questions, tries, rules and counts: ``ask``, ``Ledger``, requests, and names of chat models."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from workbench.errors import BadInput, WorkbenchError
from workbench.llm import (
    NO_MODEL,
    ChatModel,
    ContextTooLong,
    EmbeddedReader,
    ExtractiveReader,
    Ledger,
    LlmError,
    Message,
    Reader,
    Reply,
    Request,
    Rules,
    Scripted,
    Tool,
    Usage,
    ask,
    check,
    open_llm,
)


class Note(BaseModel):
    title: str
    score: int = Field(ge=0)


GOOD = '{"title": "a", "score": 1}'
RULE = Note(title="by rule", score=0)


def test_a_good_answer_is_taken_at_once() -> None:
    model, ledger = Scripted([GOOD]), Ledger()
    reply = ask(model, "Note this", Note, ledger=ledger, seed=5, temperature=0.2, max_tokens=40, stop=["END"])
    assert reply.parsed == Note(title="a", score=1)
    assert (reply.attempts, reply.fallback, reply.problem, reply.repairs) == (1, None, "", ())
    asked = model.requests[0]
    assert (asked.seed, asked.temperature, asked.max_tokens, asked.stop, asked.schema) == (5, 0.2, 40, ("END",), Note)
    assert (ledger.answers, ledger.retries, ledger.repaired, ledger.fallbacks, ledger.failures) == (1, 0, 0, 0, 0)
    assert ledger.usage == reply.usage == Usage(2, 15, 1)


def test_a_malformed_answer_is_told_to_the_model_and_asked_again() -> None:
    model, ledger = Scripted(["what?", '{"title": "a", "score": -1}', f"```{GOOD}```"]), Ledger()
    reply = ask(model, [Message("system", "Be exact."), Message("user", "Note this")], Note, ledger=ledger)
    assert (reply.parsed, reply.attempts, reply.usage.calls) == (Note(title="a", score=1), 3, 3)
    assert (ledger.retries, ledger.repaired, ledger.usage) == (2, 1, reply.usage)
    second, third = model.requests[1].messages, model.requests[2].messages
    assert [message.role for message in second] == ["system", "user", "assistant", "user"] == [m.role for m in third]
    assert second[2].content == "what?"
    assert "no JSON object" in second[3].content
    assert "score: Input should be greater than or equal to 0" in third[3].content


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_after_the_tries_the_rule_answers_and_is_counted(tries: int) -> None:
    model, ledger = Scripted(["a", "b", "c", "d"]), Ledger()
    reply = ask(model, "Hi", Note, tries=tries, fallback=lambda: RULE, ledger=ledger)
    assert reply.parsed == RULE
    assert reply.fallback == "the answer holds no JSON object"
    assert (reply.text, reply.attempts, reply.usage.calls, len(model.requests)) == ("", tries, tries, tries)
    assert (ledger.fallbacks, ledger.retries, ledger.failures) == (1, tries - 1, 0)
    assert ledger.reasons().to_dict("records") == [
        {"model": "scripted", "kind": "fallback", "reason": "the answer holds no JSON object", "n": 1}
    ]


def test_after_the_tries_without_a_rule_it_is_an_error_that_says_why() -> None:
    ledger = Ledger()
    with pytest.raises(LlmError, match="no Note after 3 requests: the JSON does not fit the schema: score") as caught:
        ask(Scripted(['{"title": "a"}'] * 3), "Hi", Note, ledger=ledger)
    assert isinstance(caught.value, WorkbenchError)
    assert (ledger.failures, ledger.fallbacks, ledger.usage.calls) == (1, 0, 3)


@pytest.mark.parametrize("error", [LlmError("the server is down", attempts=3), ContextTooLong("9 tokens, 8 fit")])
def test_a_model_that_cannot_answer_is_not_asked_again(error: LlmError) -> None:
    ledger = Ledger()
    model = Scripted([error, GOOD])
    assert ask(model, "Hi", Note, fallback=lambda: RULE, ledger=ledger).fallback == str(error)
    assert len(model.requests) == 1
    with pytest.raises(LlmError, match=str(error)):
        ask(Scripted(["rubbish", error]), "Hi", Note, ledger=ledger)
    assert (ledger.fallbacks, ledger.failures) == (1, 1)
    assert ledger.retries == error.attempts - 1 + error.attempts


@pytest.mark.parametrize("llm", [None, Rules(), open_llm("rules")])
def test_without_a_language_model_the_rule_answers_labelled(llm: ChatModel | None) -> None:
    ledger = Ledger()
    reply = ask(llm, "Hi", Note, fallback=lambda: RULE, ledger=ledger)
    assert (reply.parsed, reply.fallback, reply.attempts, reply.usage) == (RULE, NO_MODEL, 0, Usage())
    frame = ledger.frame()
    assert frame[["model", "label", "fallbacks", "calls"]].to_dict("records") == [
        {"model": "rules", "label": NO_MODEL, "fallbacks": 1, "calls": 0}
    ]
    with pytest.raises(LlmError, match=r"rules \(no language model\) gave no Note after 0 requests"):
        ask(llm, "Hi", Note)


@pytest.mark.parametrize(
    ("messages", "options", "told"),
    [
        ([], {}, "messages are empty"),
        ("", {}, "messages are empty"),
        ([Message("user", " \n")], {}, "messages are empty"),
        ([Message("robot", "Hi")], {}, "role of a message is one of system"),
        ([Message("user", 3)], {}, "content of a message is text"),  # type: ignore[arg-type]
        ([{"content": "Hi"}], {}, "role and content"),
        ([{"role": "user", "content": "Hi", "name": "x"}], {}, "role and content"),
        (3, {}, "list of Message"),
        ([3], {}, "must be Message"),
        ("Hi", {"tries": 0}, "tries"),
        ("Hi", {"tries": True}, "tries"),
        ("Hi", {"max_tokens": 0}, "max_tokens"),
        ("Hi", {"temperature": -1}, "temperature"),
        ("Hi", {"temperature": float("nan")}, "temperature"),
        ("Hi", {"seed": "x"}, "seed"),
        ("Hi", {"stop": [""]}, "stop"),
        ("Hi", {"tools": ["x"]}, "tools must be"),
        ("Hi", {"tools": [Tool("f", "", Note), Tool("f", "", Note)]}, "same name"),
        ("Hi", {"fallback": lambda: "text"}, "fallback must return a Note"),
    ],
)
def test_impossible_requests_are_refused_before_a_model_is_asked(messages: Any, options: dict, told: str) -> None:
    model, ledger = Scripted([LlmError("asked")]), Ledger()
    with pytest.raises(BadInput, match=told):
        ask(model, messages, Note, ledger=ledger, **{"fallback": lambda: RULE, **options})
    assert len(model.requests) == (1 if told.startswith("fallback") else 0)
    assert ledger.answers == 0


def test_a_schema_is_a_pydantic_class() -> None:
    with pytest.raises(BadInput, match="open_llm opens one"):
        ask("openai:tiny", "Hi", Note, fallback=lambda: RULE)
    with pytest.raises(BadInput, match="pydantic model class"):
        ask(Scripted([GOOD]), "Hi", dict)  # type: ignore[arg-type]


def test_messages_come_as_text_as_dicts_or_as_they_are() -> None:
    made = (Message("user", "Hi"),)
    assert all(Request.of(x).messages == made for x in ("Hi", made, made[0], [{"role": "user", "content": "Hi"}]))


def test_usage_adds_up() -> None:
    assert Usage(1, 2, 3) + Usage(10, 20, 30, 1) == Usage(11, 22, 33, 1)
    assert sum([Usage(1, 1, 1)] * 3, Usage()) == Usage(3, 3, 3)


def test_a_ledger_shared_by_threads_loses_nothing() -> None:
    ledger = Ledger()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ledger.note(f"m{i % 3}", "", Reply(usage=Usage(1, 2, 1), attempts=3)), range(3000)))
    assert (ledger.answers, ledger.retries, ledger.usage) == (3000, 6000, Usage(3000, 6000, 3000))
    assert ledger.frame()["answers"].tolist() == [1000] * 3
    assert "3000 answers" in repr(ledger)


def test_an_empty_ledger_shows_its_columns() -> None:
    assert list(Ledger().frame().columns)[:4] == ["model", "label", "answers", "calls"]
    assert list(Ledger().reasons().columns) == ["model", "kind", "reason", "n"]


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt", "openai", "openai:", "hf:", "ollama:tiny", "http://localhost", "", " "])
def test_unknown_names_say_which_there_are(name: str) -> None:
    with pytest.raises(BadInput, match="openai:MODEL@http"):
        open_llm(name)


def test_a_chat_model_is_opened_as_it_is() -> None:
    model = Scripted([GOOD])
    assert open_llm(model) is model
    with pytest.raises(BadInput, match="with options"):
        open_llm(model, timeout=3)
    with pytest.raises(BadInput, match="int"):
        open_llm(3)


@pytest.mark.parametrize("model", [Rules(), Scripted([]), open_llm("embedded"), open_llm("hf:some/model")])
def test_every_back_end_keeps_the_protocol(model: ChatModel) -> None:
    assert isinstance(model, ChatModel)
    assert model.name
    assert model.label
    with pytest.raises(BadInput, match="empty"):
        model.chat([])
    with pytest.raises(BadInput, match="empty"):
        model.stream([])  # at the call, not at the first piece


@pytest.mark.parametrize("reader", [EmbeddedReader(), ExtractiveReader()])
def test_every_reader_keeps_its_protocol(reader: Reader) -> None:
    assert isinstance(reader, Reader)
    with pytest.raises(BadInput, match="question is empty"):
        reader.answer("  ", "context")
    with pytest.raises(BadInput, match="are text"):
        reader.answer("Who?", None)  # type: ignore[arg-type]


def test_scripts_end_and_are_checked() -> None:
    model = Scripted([GOOD])
    assert model.chat("Hi").text == GOOD
    with pytest.raises(LlmError, match="the script has 1 answers"):
        model.chat("Hi")
    assert list(Scripted([RULE]).stream("Hi")) == [RULE.model_dump_json()]
    with pytest.raises(BadInput, match="list of texts"):
        Scripted("text")


def test_the_package_and_its_back_ends_import_nothing_heavy(root: Path) -> None:
    modules = [f"workbench.llm.{path.stem}" for path in (root / "workbench" / "llm").glob("*.py")]
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        "from workbench.llm import *\nopen_llm('embedded'); open_llm('hf:a/b'); open_llm('openai:m@http://h/v1')\n"
        "print(sorted({'torch', 'transformers', 'openai', 'pandas', 'numpy', 'httpx'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


# -- check ------------------------------------------------------------------------------------------------------------


def test_check_shows_what_a_model_can_do() -> None:
    def clever(request: Request) -> str:
        if request.schema is not None:
            return '{"people": ["Ada", "Ben"], "town": "Leeds"}'
        return "Leeds"

    frame = check(Scripted(clever)).set_index("check")
    assert frame["ok"].to_dict() == {
        "answers": True, "schema": True, "tools": False, "streams": True, "repeats": True, "speed": True,
    }  # fmt: skip
    assert "no call" in frame.loc["tools", "detail"]
    turns = iter(range(100))
    assert not check(Scripted(lambda r: f"turn {next(turns)}")).set_index("check").loc["repeats", "ok"]


def test_check_of_a_dead_server_is_one_row() -> None:
    frame = check("openai:tiny@http://127.0.0.1:9/v1", retries=0, timeout=2)
    assert frame["check"].tolist() == ["answers"]
    assert not frame["ok"].any()
    assert "cannot be reached" in frame["detail"][0]
    with pytest.raises(BadInput):
        check("nonsense")
