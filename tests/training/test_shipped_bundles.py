"""Bundles that ship: small, whole, of a paper of the catalogue or the comparison, with the recipe that made them."""

import pytest

import workbench.tasks.pairs  # noqa: F401  tells transformers of the comparison's probe
from workbench.training._tiny_bundle import MOST_BYTES
from workbench.training.tiny import bundle_record, load_bundle
from workbench_datasets.files import files_root
from workbench_datasets.papers import papers

FILES = sorted((files_root() / "models" / "layers").glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_bundle_is_whole_and_says_how_it_was_made(path):
    assert path.stem in {*papers(), "compare-layers"}
    assert path.stat().st_size <= MOST_BYTES + (1 << 18)  # and its header
    record = bundle_record(path)
    assert record["recipe"]
    assert record["code"]
    models = load_bundle(path)
    assert list(models) == list(record["models"])
    assert record["stored"] == "float16"
    for model in models.values():
        assert 2 * sum(p.numel() for p in model.parameters()) < 1 << 20, "a megabyte each"
        assert all(bool(p.isfinite().all()) for p in model.parameters())
