"""Fixtures shared by all tests: the demo model, loaded once, and tiny random ones.

Nothing here needs the network: the Hub is switched off before anything imports it.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session", autouse=True)
def folders(tmp_path_factory):
    """Caches and outputs of a test run go to a folder of their own."""
    root = tmp_path_factory.mktemp("studio")
    os.environ["SST_CACHE"] = str(root / "cache")
    os.environ["SST_HOME"] = str(root / "home")
    os.environ["SST_OUTPUTS"] = str(root / "outputs")
    return root


@pytest.fixture(scope="session")
def host():
    """The demo model. Shared by every test: a host keeps nothing of what it is asked."""
    from sst_ui.model.runtime.host import load
    from sst_ui.progress import finish
    from sst_ui.recipe import ModelSpec

    return finish(load(ModelSpec(id="demo")))


@pytest.fixture
def tiny():
    """`tiny(name, **overrides)`: a random model of one of the architectures of tests/tiny.py."""
    from tests.tiny import tiny as build

    return build


@pytest.fixture
def tiny_host():
    """`tiny_host(name, tokenizer=None, spec=None, **overrides)`: a host of such a model."""
    from tests.talk import tiny_host as build

    return build


@pytest.fixture
def stored_host(tmp_path):
    """`stored_host(name, dtype, tokenizer)`: a tiny random model, loaded from a folder."""
    import torch

    from sst_ui.model.runtime.host import load
    from sst_ui.progress import finish
    from sst_ui.recipe import ModelSpec
    from tests.talk import byte_tokenizer
    from tests.tiny import tiny as build

    def stored(name, dtype=torch.float32, tokenizer=None, **overrides):
        folder = tmp_path / f"tiny-{name}"
        build(name, **{"vocab_size": 261, **overrides}).to(dtype).save_pretrained(folder)
        (tokenizer or byte_tokenizer()).save_pretrained(folder)
        return finish(load(ModelSpec(id=str(folder))))

    return stored
