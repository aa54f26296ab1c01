"""The authors' hundred questions answered by a chat model, with the memory and without.

There are no gold answers in the authors' file. A question that names a day is scored by its overlap with what was said
on that day; how well an answer is, a person has to say (0, ½, 1 in the paper).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workbench.studies._memorybank_claims import NONE, OFF, USERS
from workbench.studies._memorybank_talk import Row, encoder_of, warm
from workbench.studies._memorybank_world import evening

if TYPE_CHECKING:
    from workbench.llm import ChatModel
    from workbench.studies.base import Progress
    from workbench_datasets.companions import Companions, Exchange


def chat_rows(
    settings: Mapping[str, Any], progress: Progress, users: Companions | None = None, llm: ChatModel | None = None
) -> Iterator[Row]:
    """Two answers a question: overlap with the named day (where one is named) and the words of the answer.

    ``users`` default to the authors', ``llm`` to the model that ``settings["chat"]`` names.
    """
    from workbench.llm import Message, open_llm
    from workbench.memory.stores.base import count_tokens
    from workbench.memory.stores.memorybank import MemoryBank
    from workbench_datasets import companions

    people = companions.load() if users is None else users
    model = open_llm(settings["chat"]) if llm is None else llm
    warm(encoder_of(settings["encoder"]), people)
    memory = MemoryBank(encoder=encoder_of(settings["encoder"]), rule="none", reinforce="never", k=settings["k"])
    memory.remember(people.exchanges)
    for user in people:
        memory.end_day(evening(user, len(user.days) - 1), user=user.name)
    days = {(user.name, day): [e for e in user.exchanges if e.day == day] for user in people for day in user.days}
    for number, probe in enumerate(progress(people.probes, "questions")):
        prompt = memory.prompt(probe.text, user=probe.user, budget_tokens=settings["chat_budget"])
        asked = {OFF: prompt.messages(), NONE: [Message("system", memory.role), Message("user", probe.text)]}
        for policy, messages in asked.items():
            said = model.chat(messages, max_tokens=settings["chat_tokens"]).text
            same = {"experiment": USERS, "policy": policy, "unit": f"{probe.user} {number}", "step": model.name}
            yield {**same, "metric": "answer length", "value": float(count_tokens(said))}
            if probe.day is not None:
                value = overlap(said, days[probe.user, probe.day])
                yield {**same, "metric": "overlap with the named day", "value": value}


def overlap(answer: str, exchanges: Iterable[Exchange]) -> float:
    """Largest F1 of the content words of ``answer`` with those of one exchange, 0 to 1."""
    from workbench.llm.rules import content_words

    said = set(content_words(answer))
    best = 0.0
    for exchange in exchanges:
        told = set(content_words(exchange.text))
        if said and told:
            best = max(best, 2 * len(said & told) / (len(said) + len(told)))
    return best
