"""JRT-Prompt: the same context and question written several times into one prompt ("Just read twice", section 3.2).

A recurrent model that reads ``C Q`` has to choose what to keep of C before it knows Q. In ``C Q C Q`` it reads C the
second time with Q already in its state. Nothing is trained; the answer is generated once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.checks import whole
from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from workbench_datasets.notes import Note

#: As in the paper's evaluation: at most so many new tokens, and none after a line break.
NEW_TOKENS, STOP = 48, "\n"

Count = Callable[[str], int]


@dataclass(frozen=True)
class Prompt:
    """A prompt of ``tokens`` tokens that holds its context ``repeats`` times; ``default_tokens``: with one copy."""

    text: str
    repeats: int
    tokens: int
    default_tokens: int


def repeated(context: str, question: str, repeats: int = 2, separator: str = "\n") -> str:
    """``C Q C Q``: context and question in turn, ``repeats`` times, with ``separator`` between every two parts.

    >>> repeated("Ada lives in Ulm.", "Where does Ada live?", separator=" ")
    'Ada lives in Ulm. Where does Ada live? Ada lives in Ulm. Where does Ada live?'
    """
    _parts(context=context, question=question)
    return separator.join([context, question] * _repeats(repeats))


def extraction(key: str, text: str, repeats: int = 2) -> str:
    """The template of the extraction tasks (FDA, SWDE): what is looked for, the text ``repeats`` times, the key again.

    With one copy it is the default prompt, the text and then the key.

    >>> extraction("device name", "Model X2 is a pump.")
    'Information about device name. Model X2 is a pump.\\nModel X2 is a pump. Device name:'
    >>> extraction("device name", "Model X2 is a pump.", repeats=1)
    'Model X2 is a pump. Device name:'
    """
    _parts(key=key, text=text)
    end = f"{key[0].upper()}{key[1:]}:"
    if _repeats(repeats) == 1:
        return f"{text} {end}"
    copies = "\n".join([text] * repeats)
    return f"Information about {key}. {copies} {end}"


def prepare(
    make: Callable[[int], str],
    count: Count,
    context_size: int | None,
    *,
    repeats: int = 2,
    new_tokens: int = NEW_TOKENS,
) -> Prompt:
    """The prompt ``make(repeats)`` with both of its lengths.

    Args:
        make: number of repeats -> text (``repeated`` or ``extraction`` with the rest filled in).
        count: text -> number of tokens, as the model will read it.
        context_size: most tokens that the model was made for; None: it has no such limit (a recurrent model).

        new_tokens: room for the answer.

    Raises BadInput, with both lengths, when prompt and answer would not fit.
    """
    whole("new_tokens", new_tokens, 0)
    if context_size is not None:
        whole("context_size", context_size)
    text, default = make(_repeats(repeats)), count(make(1))
    tokens = default if repeats == 1 else count(text)
    if context_size is not None and tokens + new_tokens > context_size:
        copies, less = ("1 copy", "") if repeats == 1 else (f"{repeats} copies", " or repeat it less often")
        raise BadInput(
            f"the prompt of {copies} has {tokens} tokens (with one {default}); with {new_tokens} new ones "
            f"that is more than the model's context of {context_size}: shorten the context{less}"
        )
    return Prompt(text, repeats, tokens, default)


def contains(generated: str, gold: str) -> bool:
    """The paper's score: is the gold answer in the generated text, whatever the case?"""
    if not isinstance(generated, str) or not isinstance(gold, str):
        raise BadInput(f"generated and gold must be text, got {type(generated).__name__} and {type(gold).__name__}")
    if not gold.strip():
        raise BadInput("gold is empty: every text would contain it")
    return gold.strip().lower() in generated.lower()


def ask(
    answer: Callable[[Sequence[str]], Sequence[str]],
    questions: Sequence[Note],
    count: Count,
    context_size: int | None,
    *,
    repeats: Sequence[int] = (1, 2),
    new_tokens: int = NEW_TOKENS,
) -> pd.DataFrame:
    """Put every question with every number of repeats to a model.

    Args:
        answer: prompts -> generated texts.

    Returns one row a question and number of repeats: item, repeats, tokens, default_tokens, asked (place of the fact),
    answer, gold, correct (0 or 1). Raises BadInput before anything is generated when a prompt does not fit.
    """
    import pandas as pd

    prompts = {
        times: [prepare(_of(q), count, context_size, repeats=times, new_tokens=new_tokens) for q in questions]
        for times in repeats
    }
    rows = []
    for times, made in prompts.items():
        texts = answer([prompt.text for prompt in made])
        for item, (prompt, question, text) in enumerate(zip(made, questions, texts, strict=True)):
            right, sizes = float(contains(text, question.answer)), (prompt.tokens, prompt.default_tokens)
            rows.append((item, times, *sizes, question.asked, text.strip(), question.answer, right))
    columns = ["item", "repeats", "tokens", "default_tokens", "asked", "answer", "gold", "correct"]
    return pd.DataFrame(rows, columns=columns)


def _of(question: Note) -> Callable[[int], str]:
    return lambda times: repeated(question.context, question.question, times)


def _repeats(repeats: int) -> int:
    return whole("repeats", repeats, more=" (1 is the default prompt)")


def _parts(**parts: str) -> None:
    for name, part in parts.items():
        if not isinstance(part, str) or not part.strip():
            raise BadInput(f"{name} must be text that is not empty, got {part!r:.60}")
