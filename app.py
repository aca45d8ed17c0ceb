"""The door to the studio: settings -> build -> launch.

    python app.py [--host 127.0.0.1] [--port 7860] [--model demo]

Opens on this machine only, unless a host is given.
"""

import argparse
import logging
import os

from sst_ui.paths import output_dir
from sst_ui.recipe import ModelSpec
from sst_ui.ui import Engine, build, launch_options


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    """Settings from the command line, with Gradio's environment variables as defaults."""
    parser = argparse.ArgumentParser(description="SST Studio")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    port = os.environ.get("GRADIO_SERVER_PORT")
    parser.add_argument("--port", type=int, default=int(port) if port else None)
    parser.add_argument("--model", default="demo", help="demo, a folder, or a Hub id")
    return parser.parse_args(arguments)


def main() -> None:
    """Open the model in the background and show the page."""
    chosen = settings()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.environ["GRADIO_SERVER_NAME"] = chosen.host  # whoever asks whether others can come in
    engine = Engine(ModelSpec(id=chosen.model))
    page = build(engine)
    page.launch(
        server_name=chosen.host,
        server_port=chosen.port,
        allowed_paths=[str(output_dir())],
        run_history=False,
        prevent_thread_lock=True,
        **launch_options(),
    )
    engine.open()  # after the launch: its check of its own address suffers from a busy start
    page.block_thread()


if __name__ == "__main__":
    main()
