"""The app on a model whose layers are memories: states, writes, text that goes on, maps that say why there are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from workbench.widgets import Workbench
from workbench.widgets.app_state import TABS

TEXT = "The key lies under the mat.\nThe lamp stands on the desk.\nThe boat waits at the pier.\n"


@pytest.fixture(scope="module")
def mixer(tiny, tmp_path_factory) -> str:
    import torch

    from workbench.models.mixer import MixerConfig, MixerLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "mixer"
    mixers = ["gated-delta-net", {"mixer": "mom", "heads": 2}, {"mixer": "titans", "heads": 2, "chunk": 8}]
    MixerLM(MixerConfig(300, 32, mixers)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny) / name, folder / name)
    return str(folder)


@pytest.fixture
def app(mixer) -> Workbench:
    return Workbench(mixer, text=TEXT)


def visit(app: Workbench, tab: str) -> None:
    app.state.tab = tab
    assert app.status.error == "", tab


def test_the_app_opens_where_there_is_something_to_see(app, tiny, mixer, tmp_path):
    assert app.state.tab == "memory"
    assert app._pages.selected_index == TABS.index("memory")
    assert "titans" in app.tabs["memory"].static()
    header = app.view.children[0]
    assert "3 layers that are memories: gated-delta-net, mom, titans ·" in header.value
    assert "memory none" not in header.value
    assert Workbench(tiny, text=TEXT).state.tab == "heads"
    app.choose(model=tiny)  # the memory tab would be empty
    assert (app.state.tab, app._pages.selected_index) == ("heads", TABS.index("heads"))
    app.state.model = mixer
    assert app.state.tab == "memory"
    visit(app, "heads")  # a tab that somebody chose stays, also when the text is read again or the state comes back
    app.look()
    assert app.state.tab == "heads"
    assert Workbench.open(app.save(tmp_path / "state.wb")).state.tab == "heads"
    visit(app, "similarity")
    app.choose(model=tiny)
    assert app.state.tab == "similarity"


def test_a_hybrid_opens_on_the_heads_that_it_has(tiny, tmp_path):
    """Liquid's layers convolve, and some attend: those have heads, under their own numbers."""
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["conv", "full_attention", "conv", "full_attention", "conv"]
    config = Lfm2Config(vocab_size=300, num_hidden_layers=5, layer_types=kinds, **sizes)
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny) / name, tmp_path / name)
    app = Workbench(str(tmp_path), text=TEXT)
    assert (app.state.tab, app.status.error) == ("heads", "")
    assert "5 layers, 2 of them of 4 heads ·" in app.view.children[0].value
    assert app.state.layer == 1
    assert app.tabs["heads"].picker.layers == [1, 3]
    for name in ("microscope", "similarity", "memory", "heads"):
        visit(app, name)
    app.state.layer = 3
    assert app.status.error == ""
    assert app.tabs["heads"].map.title == "Layer 3, head 0"
    app.state.layer = 2
    assert "layers that have: 1, 3" in app.status.error
    assert app.state.layer == 3


def test_maps_say_that_there_is_no_attention_and_where_to_look(app):
    for name in ("heads", "microscope"):
        visit(app, name)
        assert "Timeline" in app.static()
        assert app.tabs[name].body.layout.display == "none"
    visit(app, "similarity")
    assert "data:image/png;base64," in app.static()


def test_maps_come_back_with_a_model_that_attends(app, tiny):
    visit(app, "heads")
    app.choose(model=tiny)
    assert app.status.error == ""
    assert app.tabs["heads"].body.layout.display == ""
    assert '<img alt="' in app.static()


def test_every_layers_state_is_shown_without_choosing_a_memory(app):
    visit(app, "memory")
    tab, memory = app.tabs["memory"], app.session.model.memory
    assert memory.slug == "layers"
    assert memory.get_seq_length() == len(app.session.stream) == len(app.session.tokens())
    assert "states of the layers" in tab.summary.value
    assert tab.asking.layout.display == "none"
    for word in ("gated-delta-net", "mom", "titans", "effective_rank"):
        assert word in tab.static()
    assert tab.reading.view.layout.display == ""
    assert "model.memory.contents()" in app.code.lines


def test_the_timeline_shows_every_tokens_write(app):
    visit(app, "timeline")
    memory = app.session.model.memory
    assert len(list(memory.events())) == 3  # one a line of the text
    assert memory.events().held() == set(range(memory.get_seq_length()))
    drawn = app.tabs["timeline"].chart._live.chart.to_dict()
    assert {"surprise", "decay"} <= set(memory.scalars()["name"])
    assert "token, position in the stream" in str(drawn)


def test_a_generation_leaves_its_states_to_look_at(app):
    visit(app, "generation")
    app.tabs["generation"].length.value = 3
    app.tabs["generation"].generate()
    assert app.status.error == ""
    assert app.session.model.memory.get_seq_length() == len(app.session.tokens()) + 2  # the last is not read


def test_a_cache_memory_is_refused_and_the_states_stay(app):
    app.state.memory = "streaming"
    assert "rotary" in app.status.error
    assert app.state.memory == "none"
    assert app.session.model.memory.slug == "layers"
