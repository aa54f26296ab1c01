"""A model whose layers are memories in a real JupyterLab: shipped weights, opened by path, looked at layer by layer."""

from __future__ import annotations

import drive
import pytest
from conftest import shoot
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

#: The model knows an alphabet and no language, so its tokenizer is one word an id.
APP = """
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workbench.training.tiny import shipped
from workbench.widgets import Workbench
from workbench_datasets.fact_stream import FILLERS, KEYS, VALUES, VOCABULARY

shipped("titans", ["MAG"])["MAG"].save_pretrained("mag")
words = [f"mark{i}" for i in range(VOCABULARY)]
words[2:5] = "fact", "ask", "answer"
for name, ids in (("key", KEYS), ("value", VALUES), ("word", FILLERS)):
    words[ids.start : ids.stop] = [f"{name}{i}" for i in range(len(ids))]
tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="mark0"))
tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="mark0").save_pretrained("mag")

facts = [f"fact key{3 * i} value{7 * i} " + " ".join(f"word{(5 * i + j) % 40}" for j in range(9)) for i in range(6)]
Workbench("mag", text="\\n".join([*facts, "ask key6 answer"]))
"""


@pytest.fixture(scope="module")
def app(browser, lab):
    with drive.app_page(browser, lab, "layers.ipynb", APP, maps=False) as opened:
        yield opened


def test_it_opens_on_its_memory_and_shows_every_layers_state(app):
    expect(app.box.locator(".lm-TabBar-tab.lm-mod-current")).to_contain_text("Memory")
    expect(app.box.locator(".wb-note", has_text="states of the layers take")).to_be_visible()
    rows = app.box.locator(".wb-table:visible tbody tr")
    expect(rows.first).to_be_visible()
    expect(rows.locator("td:nth-child(2)", has_text="titans-mag")).to_have_count(rows.count())
    assert set(rows.locator("td:nth-child(1)").all_text_contents()) == {"0", "1"}
    expect(app.header).to_contain_text("2 layers that are memories: titans-mag")
    expect(app.box.locator(".vega-embed svg, .vega-embed canvas").locator("visible=true").first).to_be_visible()
    assert app.error.text_content() == ""
    app.settle()
    shoot(app.box, "app-layers-memory")


def test_the_timeline_shows_every_tokens_write(app):
    app.tab("Timeline")
    expect(app.box.locator(".wb-stream:visible")).to_contain_text("fact key6 value14")
    assert app.page.evaluate("() => { const s = [...document.querySelectorAll('.wb-stream')].find(e => e.offsetWidth);"
                             " return s.scrollWidth <= s.clientWidth; }"), "the stream runs out of its box"  # fmt: skip
    expect(app.box.locator(".vega-embed svg, .vega-embed canvas").locator("visible=true").first).to_be_visible()
    app.settle()
    app.page.set_viewport_size({"width": 1440, "height": 1900})
    shoot(app.box, "app-layers-timeline")


def test_the_heads_say_where_to_look_instead(app):
    app.tab("Heads")
    expect(app.box.locator(".wb-note:visible", has_text="has no attention to draw")).to_be_visible()
    app.tab("Memory")
    assert app.error.text_content() == ""
    assert drive.errors(app.page) == []
