"""What a search came to, in sentences for the terminal."""

import math
from collections.abc import Sequence

from sst_ui.jobs.search.candidates import Candidate, moved, nearest
from sst_ui.jobs.search.objectives import Aims, SearchSpec, presets
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import NOTHING


def missed(found: Sequence[Candidate], aim: Aims, spec: SearchSpec) -> str:
    """Why a search that is over has no best."""
    done = [each for each in found if each.state == "done"]
    if not done:
        return "No candidate could be measured."
    near = nearest(found, aim, spec)
    told = f"The target was missed: no candidate has {wanted(aim, spec)}"
    if near is None:
        idle, broken = (
            sum(not moved(each, aim) for each in done),
            sum(not each.feasible for each in done),
        )
        first = find(aim.objectives[0].partition("@")[0]).title.lower()
        why = [f"{idle} change the {first} too little to count"] if idle else []
        why += [f"{broken} break a constraint"] if broken else []
        return f"{told}. Of {len(done)} candidates {', '.join(why)}."
    where = "on the test prompts" if near.test else "on the prompts it was selected on"
    return (
        f"{told} on the test prompts. Nearest is #{near.number} ({near.recipe.name}): "
        f"{numbers(near, aim)} {where}."
    )


def wanted(aim: Aims, spec: SearchSpec) -> str:
    """The target in words."""
    if spec.strategy == "staged":
        return f"{presets()['stages']['removal']:.0%} of the base's refusals removed"
    return str(aim) if aim.targeted else "an effect within the constraints"


def numbers(each: Candidate, aim: Aims) -> str:
    """A candidate's metrics: those of the test where it was tested, with interval and number."""
    words = []
    for name in aim.metrics:
        value = (each.test or each.values).get(name, NOTHING)
        row = find(name.partition("@")[0])
        span = f" [{value.low:.3g}, {value.high:.3g}]" if math.isfinite(value.low) else ""
        words.append(f"{row.title} {value.value:.3g}{span} (n {value.n})")
    return ", ".join(words)
