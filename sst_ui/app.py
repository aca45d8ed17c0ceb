"""The page: settings -> build -> launch. `sst-studio` and the app.py of a checkout open it.

Opens on this machine only, unless a host is given. Heavy imports happen inside, once the settings
are known to be good.
"""

import argparse
import logging
import os

from sst_ui.cli import access, address, streams


def options(parser: argparse.ArgumentParser) -> None:
    """Host, port and model, with Gradio's environment variables and SST_MODEL as defaults."""
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1")
    parser.add_argument("--port", default=os.environ.get("GRADIO_SERVER_PORT") or None)
    model = os.environ.get("SST_MODEL") or "demo"  # a Space has variables, and no command line
    parser.add_argument("--model", default=model, help="demo, a folder, or a Hub id")
    access.options(parser)


def settings(arguments: list[str] | None = None, prog: str = "python app.py") -> argparse.Namespace:
    """Settings from the command line; the port is tried."""
    parser = address.Parser(prog=prog, description="SST Studio")
    options(parser)
    chosen = parser.parse_args(arguments)
    chosen.people, chosen.keys = access.people(chosen), access.keys(chosen)
    chosen.port = address.check(chosen.host, chosen.port)
    return chosen


def main() -> int:
    """Open the page until the program is stopped; the return value is the exit code."""
    return streams.guarded(lambda: open_page(settings()))


def open_page(chosen: argparse.Namespace) -> None:
    """Open the model in the background and show the page."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.environ.pop("GRADIO_SERVER_NAME", None)  # Gradio would look for a free port by it, IPv4 only

    from sst_ui import disk
    from sst_ui.paths import output_dir
    from sst_ui.recipe import ModelSpec
    from sst_ui.ui import Engine, build, launch_options
    from sst_ui.ui.services import memory, roles, visitors

    os.environ["GRADIO_SERVER_NAME"] = chosen.host  # read by run_store.shared()
    shared = visitors.admit(chosen.model)
    roles.keys(chosen.keys)
    roles.models(access.models(chosen))
    disk.sweep(output_dir())  # what was being exported when the program was killed
    engine = Engine(ModelSpec(id=chosen.model))
    page = build(engine)
    memory.watch()
    address.launch(
        page,
        server_name=chosen.host,
        server_port=chosen.port,
        allowed_paths=[] if shared else [str(output_dir())],
        auth=chosen.people,
        run_history=False,
        **launch_options(),
    )
    engine.open()  # after the launch: its check of its own address suffers from a busy start
    address.wait(page)
