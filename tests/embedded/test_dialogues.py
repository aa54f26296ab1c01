"""Dialogues: same seed same text, gold answers right, the frame exact, bad input refused."""

import random
from collections import Counter

import pytest

from workbench_datasets import dialogues as d


@pytest.mark.parametrize("kind", d.KINDS)
def test_same_seed_same_dialogues_and_longer_lists_extend(kind):
    first, longer = d.dialogues(kind, 5, seed=3), d.dialogues(kind, 8, seed=3)
    assert first == longer[:5]
    assert first != d.dialogues(kind, 5, seed=4)


@pytest.mark.parametrize("kind", d.KINDS)
def test_every_answer_is_one_of_its_options_and_the_frame_is_exact(kind):
    for dialogue in d.dialogues(kind, 50, seed=1):
        assert dialogue.text == "".join(f"USER: {r.text} ASSISTANT: {r.answer}\n" for r in dialogue.rounds)
        for turn in dialogue.rounds:
            assert turn.options.count(turn.answer) == 1
            assert len(set(turn.options)) == len(turn.options)
            assert turn.render() == turn.prompt + f" {turn.answer}\n"


def test_grocery_order_holds_the_recalled_item_and_nothing_between_does():
    for dialogue in d.dialogues("grocery", 200, seed=2, distractors=12):
        order, *middle, recall = dialogue.rounds
        assert order.text == f"buy the GROCERY: {recall.answer}"
        assert len(middle) == 12
        assert len(recall.options) == 4
        assert set(recall.options) <= set(d.GROCERIES)
        assert all(recall.answer not in f"{turn.text} {turn.answer}".split() for turn in middle)


def test_recall_answer_stands_at_every_option_position():
    places = Counter(g.rounds[-1].options.index(g.meta["item"]) for g in d.dialogues("grocery", 400, seed=0))
    assert min(places[i] for i in range(4)) > 60


def test_reply_beats_the_most_frequent_move_and_ties_go_to_the_latest():
    assert d.best_reply(["rock", "paper"]) == "scissors"
    assert d.best_reply(["rock", "paper", "rock"]) == "paper"
    assert d.outcome("paper", "rock") == "win"
    assert d.outcome("rock", "paper") == "lose"
    assert d.outcome("rock", "rock") == "tie"
    for game in d.dialogues("rock-paper-scissors", 20, seed=5, rounds=30):
        for i, turn in enumerate(game.rounds):
            counts = Counter(game.meta["moves"][: i + 1])
            beaten = next(move for move, winner in d.BEATS.items() if winner == turn.answer)
            assert counts[beaten] == max(counts.values())
            assert turn.meta["next"] == game.meta["moves"][i + 1]


@pytest.mark.parametrize("player", sorted(d.PLAYERS))
def test_move_shares_follow_the_player(player):
    game = d.rock_paper_scissors(random.Random(7), player=player, rounds=4000)
    counts = Counter(game.meta["moves"])
    for move, share in zip(d.MOVES, d.PLAYERS[player]):
        assert counts[move] / 4001 == pytest.approx(share, abs=0.03)


def test_chat_replies_repeat_what_was_said():
    for talk in d.dialogues("chat", 100, seed=6):
        assert len(talk.rounds) == 3
        assert "{" not in talk.text
        assert len(talk.scored) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: d.dialogues("poker", 1),
        lambda: d.dialogues("chat", 0),
        lambda: d.dialogues("grocery", 1, distractors=-1),
        lambda: d.dialogues("grocery", 1, options=1),
        lambda: d.dialogues("rock-paper-scissors", 1, player="lizard"),
        lambda: d.dialogues("rock-paper-scissors", 1, rounds=0),
        lambda: d.best_reply([]),
    ],
)
def test_bad_input_names_the_argument(call):
    with pytest.raises(ValueError, match="expected"):
        call()
