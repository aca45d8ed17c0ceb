"""How jobs look in a terminal: progress bars on stderr, answers that grow side by side.

Heavy imports happen inside, so that `--help` is quick.
"""

from collections.abc import Generator
from typing import Any

from sst_ui.progress import Progress, finish


def with_bar(job: Generator[Any, None, Any]) -> Any:
    """Run a job under a progress bar on stderr and return its result."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}
        said: set[str] = set()

        def show(step: Any) -> None:
            if isinstance(step, Progress):
                if step.warning and step.warning not in said:
                    said.add(step.warning)
                    console.print(f"warning: {step.warning}", markup=False, soft_wrap=True)
                if step.stage not in tasks:
                    tasks[step.stage] = bar.add_task(step.stage, total=step.total)
                bar.update(tasks[step.stage], completed=step.done, total=step.total)

        try:
            return finish(job, show)
        finally:
            job.close()


def live(console: Any, names: tuple[str, ...], replies: Generator[Any, None, Any]) -> list[str]:
    """Show columns of text as they grow; Ctrl+C stops the answer and keeps what is there."""
    from rich.columns import Columns
    from rich.live import Live
    from rich.panel import Panel

    texts = [""] * len(names)

    def view(texts: list[str]) -> Columns:
        width = max(20, console.width // len(names) - 2)
        panels = [Panel(t.strip(), title=n, width=width) for n, t in zip(names, texts, strict=True)]
        return Columns(panels)

    if not console.is_terminal:
        for reply in replies:
            texts = reply
        for name, text in zip(names, texts, strict=True):
            print(f"{name}: {text.strip()}")
        return texts
    with Live(view(texts), console=console, refresh_per_second=12) as live:
        try:
            for reply in replies:
                texts = reply
                live.update(view(texts))
        except KeyboardInterrupt:
            replies.close()
    return texts
