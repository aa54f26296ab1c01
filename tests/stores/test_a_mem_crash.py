"""A writer that is killed in the middle: what it acknowledged is there, whole, with links and embeddings that fit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from amem_kit import encoder

from workbench.memory.stores._amem_notes import Note
from workbench.memory.stores.a_mem import AMem

WRITER = """
import random, sys
from workbench.memory.retrieval import HashedTfidf
from workbench.memory.stores.a_mem import AMem
memory, rng = AMem(sys.argv[1], encoder=HashedTfidf(dim=512)), random.Random(int(sys.argv[2]))
who, what = ["Ada", "Bo", "Cy", "Di"], ["kitten", "violin", "museum", "harbour", "submarine"]
while True:
    text = f"{rng.choice(who)} told {rng.choice(who)} about the {rng.choice(what)} and the {rng.choice(what)}."
    print(memory.write(text), flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path):
    path, known = tmp_path / "notes.db", set()
    for kill in range(5):
        command = [sys.executable, "-c", WRITER, str(path), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(7 + 3 * kill):
                known.add(int(writer.stdout.readline()))
            writer.kill()
            known.update(int(line) for line in writer.stdout.read().split("\n")[:-1] if line)
        with AMem(path, encoder=encoder()).store as store:
            items = store.items()
            held = {item.id for item in items}
            assert known <= held
            assert len(held) <= len(known) + kill + 1, "at most one write a kill was not acknowledged yet"
            assert all(set(item.links) <= held for item in items)
            assert [item.index_text for item in items] == [Note.of(item).index_text() for item in items]
            wanted = encoder().encode([item.index_text for item in items])
            np.testing.assert_allclose(store.vectors(), wanted, atol=1e-6)
            units = [event.detail["unit"] for event in store.events() if event.kind == "write"]
            assert len(units) == len(set(units)) == len(held), "one unit a note"
