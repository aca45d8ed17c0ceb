"""What the tests without a page share."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def collected():
    """Leave what imports have made out of later collections.

    Loading a model collects, and these tests load hundreds of small ones: most of their time went
    into looking through the same million objects of libraries.
    """
    gc.collect()
    gc.freeze()
