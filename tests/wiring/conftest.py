"""One running studio for the wiring tests: the demo behind a real server on this machine."""

import pytest

from sst_ui.progress import finish
from sst_ui.ui import Engine, build
from tests.patience import launched


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
    yield launched(page)
    page.close()
