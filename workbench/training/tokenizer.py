"""The embedded models' tokenizer: byte-level BPE in which every word of the small world is one token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import BadInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

BOS, EOS = "<|bos|>", "<|eos|>"
VOCABULARY = 4096
CONTEXT = 1024


def train_tokenizer(
    books: dict[str, str], *, vocabulary: int = VOCABULARY, documents: int = 6000, seed: int = 0
) -> Tokenizer:
    """Learn a byte-level BPE on ``books`` and on documents of the small world; digits stay single tokens.

    World words are fed often enough to become single tokens; :func:`check_words` verifies that they did.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_training_text(books, documents, seed), trainer)
    special = [(name, tokenizer.token_to_id(name)) for name in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=special
    )
    return tokenizer


def _training_text(books: dict[str, str], documents: int, seed: int):  # type: ignore[no-untyped-def]
    from workbench.training.mixture import world_makers
    from workbench_datasets import _world_words, dialogues
    from workbench_datasets.small_world import world

    for text in books.values():
        yield from text.split("\n\n")
    rng, makers = random.Random(f"tokenizer:{seed}"), world_makers(world(seed))
    for index in range(documents):
        yield makers[list(makers)[index % len(makers)]](rng).text
    for word in (*_world_words.all_words(), *dialogues.GROCERIES):
        yield f" {word}" * 2000


def check_words(tokenizer: Tokenizer) -> list[str]:
    """World words that are not one token with their leading blank (an empty list is what training needs)."""
    from workbench_datasets import _world_words

    def tokens(word: str) -> int:
        return len(tokenizer.encode(f" {word}", add_special_tokens=False).ids)

    return [word for word in _world_words.all_words() if tokens(word) != 1]


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write tokenizer.json and its configuration so that ``AutoTokenizer`` loads the folder."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.save_pretrained(str(folder))
    return Path(folder)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    if not (Path(folder) / "tokenizer.json").is_file():
        raise BadInput(f"tokenizer={str(folder)!r}: expected a folder that holds tokenizer.json")
    return PreTrainedTokenizerFast.from_pretrained(str(folder))
