"""Imports without the garbage collector, which is as it was afterwards."""

import gc
import subprocess
import sys

import pytest

from sst_ui.quick_import import quick_import


def test_nothing_is_collected_inside_and_what_came_stays_out_of_later_collections():
    before = gc.get_freeze_count()
    with quick_import():
        assert not gc.isenabled()
        with quick_import():
            kept = [[] for _ in range(1000)]
        assert not gc.isenabled()  # the outer one goes on
        assert gc.get_freeze_count() == before
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError), quick_import():
        import sst_ui.nowhere  # noqa: F401
    assert gc.isenabled()


def test_what_needs_the_large_libraries_imports_them_so():
    code = "import gc, sst_ui.maths; print(gc.isenabled(), gc.get_freeze_count() > 50_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
