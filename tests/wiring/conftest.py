"""One running studio for the wiring tests: the demo behind a real server on this machine."""

import pytest

from sst_ui.progress import finish
from sst_ui.ui import Engine, build, launch_options


@pytest.fixture(scope="package")
def engine(folders):
    """An engine with the demo open and the default recipe resolved."""
    engine = Engine()
    engine.open()
    finish(engine.wait())
    assert engine.failure is None
    return engine


@pytest.fixture(scope="package")
def page(engine):
    """The page as Gradio sees it, not launched."""
    return build(engine)


@pytest.fixture(scope="package")
def address(page):
    """Address of the launched page."""
    _, url, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, run_history=False,
        **launch_options(),
    )  # fmt: skip
    yield url
    page.close()
