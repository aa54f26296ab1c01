"""A Hugging Face chat model by its template: a tiny one that was really trained on three conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_chat
from pydantic import BaseModel

from workbench.errors import BadInput
from workbench.llm import (
    ContextTooLong,
    HfChat,
    Ledger,
    LlmError,
    Message,
    Request,
    Tool,
    ToolCall,
    Usage,
    ask,
    check,
    open_llm,
)
from workbench.llm.hf import calls_in
from workbench.models import LoadedModel, load


class City(BaseModel):
    city: str


WEATHER = Tool("weather", "The weather of a city.", City)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.make(tmp_path_factory.mktemp("tiny-chat"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(folder)


@pytest.fixture
def llm(loaded: LoadedModel) -> HfChat:
    return HfChat(loaded)


def test_it_is_opened_by_folder_and_answers_in_its_own_format(folder: Path) -> None:
    llm = open_llm(f"hf:{folder}")
    reply = llm.chat("Hi")
    assert (reply.text, reply.stopped, reply.attempts) == ("Hello there.", "stop", 1)
    count = llm.loaded.tokenizer
    read, written = count("<s><user>Hi<assistant>")["input_ids"], count("Hello there.</s>")["input_ids"]
    assert reply.usage == Usage(len(read), len(written), 1)
    assert llm.name == f"hf:{folder}"
    assert llm.label == f"{folder.name} (local)"


def test_streams_are_the_answer_in_pieces(llm: HfChat) -> None:
    pieces = list(llm.stream("Hi"))
    assert "".join(pieces) == "Hello there."
    assert len(pieces) > 2


def test_a_stream_that_is_left_early_leaves_the_model_usable(llm: HfChat) -> None:
    stream = llm.stream("Hi")
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.chat("Hi").text == "Hello there."


def test_settings_of_the_request_reach_the_model(llm: HfChat) -> None:
    assert llm.chat("Hi", stop=" th").text == "Hello"
    assert llm.chat("Hi", stop=" th").stopped == "stop"
    short = llm.chat("Hi", max_tokens=2)
    assert (short.usage.completion_tokens, short.stopped) == (2, "length")
    drawn = [llm.chat("What?", temperature=3.0, seed=seed, max_tokens=12).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_template_without_system_turns_reads_them_before_the_first_question(llm: HfChat) -> None:
    assert llm.chat([Message("system", "Be brief."), Message("user", "Hi")]).text == "Hey."


def test_tools_go_by_the_template_and_calls_come_back(llm: HfChat) -> None:
    reply = llm.chat("Weather in Leeds?", tools=[WEATHER])
    assert reply.tool_calls == (ToolCall("weather", {"city": "Leeds"}, "call_0"),)
    assert reply.stopped == "tool_calls"
    assert llm.chat("Hi").tool_calls == ()


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Leeds"}}\n</tool_call>', [{"city": "Leeds"}]),
        ('{"name": "weather", "parameters": {"city": "Leeds"}}', [{"city": "Leeds"}]),
        ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Leeds"}}]', [{"city": "Leeds"}]),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Leeds\\"}"}', [{"city": "Leeds"}]),
        ("{'name': 'weather', 'arguments': {'city': 'A'}} {'name': 'weather', 'arguments': {'city': 'B'}}",
         [{"city": "A"}, {"city": "B"}]),
        ('{"name": "other", "arguments": {}}', []),
        ('{"name": ["weather"]} {"x": 1} no call', []),
    ],
)  # fmt: skip
def test_calls_are_read_in_the_forms_of_the_common_families(text: str, calls: list[dict]) -> None:
    found = calls_in(text, Request.of("Hi", tools=[WEATHER]))
    assert [call.arguments for call in found] == calls
    assert {call.name for call in found} <= {"weather"}
    assert [call.id for call in found] == [f"call_{i}" for i in range(len(calls))]


def test_a_template_without_tools_reads_them_as_an_instruction(loaded: LoadedModel) -> None:
    plain = HfChat(loaded, template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    prompt = plain.prompt(Request.of("Weather?", tools=[WEATHER]))
    assert prompt.startswith("<user>You may call")
    assert '"name": "weather"' in prompt
    assert prompt.endswith("Weather?")


def test_a_schema_is_asked_for_in_words_and_what_does_not_fit_is_counted(llm: HfChat) -> None:
    ledger, rule = Ledger(), City(city="?")
    reply = ask(llm, "Hi", City, tries=1, max_tokens=8, fallback=lambda: rule, ledger=ledger)
    assert reply.parsed == rule
    assert (ledger.fallbacks, ledger.usage.calls) == (1, 1)
    assert ledger.usage.prompt_tokens > 40  # the schema was read


def test_messages_that_are_too_long_are_refused_and_long_answers_cut(llm: HfChat) -> None:
    with pytest.raises(ContextTooLong, match=r"have \d+ tokens and hf:.* reads at most 256"):
        llm.chat("x" * 2000)
    with pytest.raises(ContextTooLong):
        list(llm.stream("x" * 2000))
    reply = llm.chat("Zzz " * 40, max_tokens=10_000)
    assert reply.usage.prompt_tokens + reply.usage.completion_tokens <= tiny_chat.POSITIONS


def test_a_loaded_model_keeps_its_memory_and_its_stream(loaded: LoadedModel, llm: HfChat) -> None:
    with loaded.use(memory="streaming"):
        loaded.feed("Hi there")
        memory, session, held = loaded.memory, loaded.session, len(loaded.memory.events())
        assert llm.chat("Hi").text == "Hello there."
        assert loaded.memory is memory
        assert loaded.session is session
        assert len(loaded.memory.events()) == held
    loaded.feed("Hi there")
    before = loaded.session.length
    assert llm.chat("Hi").text == "Hello there."
    assert loaded.session.length == before
    loaded.reset()


def test_check_tries_a_real_model_out(llm: HfChat) -> None:
    frame = check(llm).set_index("check")
    assert frame.loc[["answers", "streams", "repeats", "speed"], "ok"].all()
    assert not frame.loc[["schema", "tools"], "ok"].any()  # three conversations are all it knows
    assert "tokens/s" in frame.loc["speed", "detail"]


def test_models_that_cannot_chat_say_why(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(LlmError, match="no chat template"):
        HfChat("embedded").chat("Hi")
    with pytest.raises(LlmError, match="cannot be opened"):
        open_llm(f"hf:{tmp_path / 'none'}").chat("Hi")
    with pytest.raises(LlmError, match="cannot be opened"):
        list(open_llm(f"hf:{tmp_path}").stream("Hi"))
    silent = LoadedModel("silent", loaded.model, None)
    with pytest.raises(LlmError, match="has no tokenizer"):
        HfChat(silent).chat("Hi")
    with pytest.raises(BadInput, match="hub id, a folder"):
        HfChat(None)
    with pytest.raises(BadInput, match="device"):
        HfChat("embedded", device="moon").chat("Hi")


def test_a_template_that_is_broken_is_told(loaded: LoadedModel) -> None:
    with pytest.raises(LlmError, match=r"chat template of .* refuses"):
        HfChat(loaded, template="{% for %}").chat("Hi")
    with pytest.raises(LlmError, match="only cats"):
        HfChat(loaded, template="{{ raise_exception('only cats') }}").chat("Hi")
