"""The door to the studio: settings -> build -> launch.

    python app.py [--host 127.0.0.1] [--port 7860] [--model demo]

Opens on this machine only, unless a host is given. Heavy imports happen inside, once the settings
are known to be good.
"""

import argparse
import logging
import os
import sys

from sst_ui.cli import address, streams


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    """Settings from the command line, with Gradio's environment variables as defaults."""
    parser = address.Parser(prog="python app.py", description="SST Studio")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1")
    parser.add_argument("--port", default=os.environ.get("GRADIO_SERVER_PORT") or None)
    parser.add_argument("--model", default="demo", help="demo, a folder, or a Hub id")
    chosen = parser.parse_args(arguments)
    chosen.port = address.check(chosen.host, chosen.port)
    return chosen


def main() -> None:
    """Open the model in the background and show the page."""
    chosen = settings()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.environ.pop("GRADIO_SERVER_NAME", None)  # Gradio would look for a free port by it, IPv4 only

    from sst_ui import disk
    from sst_ui.paths import output_dir
    from sst_ui.recipe import ModelSpec
    from sst_ui.ui import Engine, build, launch_options

    os.environ["GRADIO_SERVER_NAME"] = chosen.host  # whoever asks whether others can come in
    disk.sweep(output_dir())  # what was being exported when the program was killed
    engine = Engine(ModelSpec(id=chosen.model))
    page = build(engine)
    address.launch(
        page,
        server_name=chosen.host,
        server_port=chosen.port,
        allowed_paths=[str(output_dir())],
        run_history=False,
        **launch_options(),
    )
    engine.open()  # after the launch: its check of its own address suffers from a busy start
    address.wait(page)


if __name__ == "__main__":
    sys.exit(streams.guarded(main))
