"""What a studio that others use does not do for them: read its machine, and change its model."""

from gradio.utils import get_upload_folder

from sst_ui import reach
from sst_ui.paths import ASSETS, PRESETS, directions_dir
from sst_ui.ui.state.run_store import shared


def admit(model: str) -> bool:
    """Prepare for visitors where there may be any.

    Args:
        model: the owner's, which everybody's recipes name.

    Returns:
        Whether others may use the program.
    """
    if not shared():
        return False
    own = [] if model == "demo" else [model]
    reach.limit((ASSETS, PRESETS, get_upload_folder(), directions_dir(), *own))
    return True
