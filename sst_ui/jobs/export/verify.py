"""Verifies an export: a fresh process reads the folder and compares it with the live model.

`read_back` reads the folder with plain libraries. The expected matrices are computed here from the
definition (ABLITERATION §6), in float64, and not with the code that writes.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from queue import Empty, Queue
from statistics import median
from typing import IO, Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from sst_ui import disk
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import HELDOUT
from sst_ui.jobs.export.expected_weights import expectations
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.inference.logprobs import teacher_forced
from sst_ui.model.inference.replies import replies
from sst_ui.model.load.source import open_source
from sst_ui.model.runtime.host import Host
from sst_ui.paths import ROOT
from sst_ui.progress import Progress, finish

PROMPTS = HELDOUT[::-1]
TOKENS = 32  # of each answer
LOOK = 0.2  # seconds between two steps while the fresh process says nothing
# Largest share of the log-probabilities' span by which they may differ, and of a matrix's largest
# component: what rounding the weights to the type, and computing in it, explains.
LOGITS = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.05}
RESIDUE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 0.03}
NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float32"}


@dataclass(frozen=True)
class Verification:
    """What a fresh process found in a folder.

    Attributes:
        prompts, same_answers: how many were asked, and got the live model's greedy answer. None
            are asked where the live model cannot compute the edit (norms of experts).
        near_ties: answers that differ from a token on that the live model was undecided about.
        max_logit_error: largest |Δ log p| along the live answers, as a share of their span; in a
            mixture of experts `ok` goes by the median token, since rounding may change the route.
        tolerance: what rounding explains, for the coarsest type that took part.
        residue: largest deviation of a written matrix from W', along the edited directions and
            random ones, relative to the largest component of W there; None if it cannot be read.
        residue_tolerance: what rounding explains.
        worst: the parameter with the largest residue.
        parameters: how many were looked at.
        reader: the libraries that read the folder.
        ok: everything is within its tolerance.
        same_tokens: prompts that the tokenizer in the folder's own file cuts as the live one does;
            None where the format has no tokenizer inside (only GGUF has).
        problem: why nothing could be compared, as a sentence; '' where it could.
    """

    prompts: int
    same_answers: int
    near_ties: int
    max_logit_error: float
    tolerance: float
    residue: float | None
    residue_tolerance: float
    worst: str
    parameters: int
    reader: str
    ok: bool
    same_tokens: int | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def summary(self) -> str:
        """One sentence; two where it failed."""
        kept = "" if self.ok else " The files are kept in their folder; do not rely on them."
        return self._finding() + kept

    def _finding(self) -> str:
        if self.problem:
            return f"NOT verified: {self.problem}"
        found = "matches the studio" if self.ok else "does NOT match the studio"
        if not self.prompts:
            return (
                f"{found}, as far as the matrices go ({self.residue:.1e} off): the live model "
                "cannot compute this edit, so no answers were compared."
            )
        ties = f" ({self.near_ties} more differ at a near tie)" if self.near_ties else ""
        residue = "" if self.residue is None else f", matrices {self.residue:.1e} off"
        tokens = ""
        if self.same_tokens is not None:
            tokens = f"tokens of {self.same_tokens} of {self.prompts} prompts the same, "
        return (
            f"{found}: {tokens}{self.same_answers} of {self.prompts} answers the same{ties}, log-"
            f"probabilities {self.max_logit_error:.1e} off (rounding: {self.tolerance:g}){residue}."
        )


def questions(n: int) -> list[str]:
    """n held-out prompts, harmless and harmful in turn."""
    sets = [[p.user for p in prompt_sets.load(name).prompts] for name in PROMPTS]
    mixed = [text for text in chain.from_iterable(zip_longest(*sets)) if text]
    return mixed[:n]


def verify(
    host: Host,
    edits: tuple[Edit, ...],
    folder: Path,
    prompts: Sequence[str] | None = None,
    n: int = 8,
    *,
    approximate: bool = False,
) -> Generator[Progress, None, Verification]:
    """Read a written folder in a fresh process and compare it with the live model.

    Args:
        edits: what the folder should hold.
        prompts: user messages; None for held-out ones that come with the studio.
        n: at most so many.
        approximate: the folder holds an approximation (a LoRA of limited rank): its error is told,
            and `ok` means no more than that it was read and compared.

    Yields:
        Progress of the stages `answers` (live) and `reread`, in prompts.

    Returns:
        what was found; where nothing could be compared (not enough memory for a second copy, a
        folder that cannot be read), what stood in the way: what was written is not lost for that.

    Raises:
        UserError: no prompts.
    """
    asked = list(questions(n) if prompts is None else prompts)[:n]
    if not asked:
        raise UserError("verification needs at least one prompt.")
    try:
        return (yield from _compared(host, edits, folder, asked, approximate))
    except UserError as error:
        return Verification(0, 0, 0, 0.0, 0.0, None, 0.0, "", 0, "none", False, problem=str(error))


def _compared(
    host: Host, edits: tuple[Edit, ...], folder: Path, asked: list[str], approximate: bool
) -> Generator[Progress, None, Verification]:
    try:
        host.live.compile([edits])
    except UserError:  # the written matrices can be compared nevertheless
        asked = []
    device = _room(host)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=disk.temporary()) as work:
        reference = Path(work) / "reference.safetensors"
        request, tensors = yield from _live(host, edits, asked)
        request["device"] = device
        save_file(tensors, reference, metadata={"request": json.dumps(request)})
        yield Progress("reread", 0, len(asked))
        found = yield from _fresh(Path(folder), reference)
    return _judged(host, request, found, tensors, approximate)


def _live(
    host: Host, edits: tuple[Edit, ...], asked: list[str]
) -> Generator[Progress, None, tuple[dict[str, Any], dict[str, Tensor]]]:
    """What the live model answers and computes, and what the matrices should be."""
    encoded = [host.encode(prompt) for prompt in asked]
    rows = [edits] * len(encoded)
    answered = yield from replies(host, encoded, rows, TOKENS)
    end = sorted(host.stop) or [host.pad]
    answers = [[*reply.tokens, *(end[:1] if reply.ended else [])] for reply in answered]
    scored = teacher_forced(host, encoded, answers, rows)
    tensors = {f"logprobs.{i}": row.contiguous() for i, row in enumerate(scored)}
    names = []
    for number, (name, axis, left, expected, size) in enumerate(expectations(host, edits)):
        names.append((name, axis))
        found = {"left": left, "expected": expected, "size": size}
        tensors |= {f"{key}.{number}": value.contiguous() for key, value in found.items()}
    source = open_source(host.spec)
    request = {
        "prompts": encoded,
        "texts": [host.format([{"role": "user", "content": prompt}]) for prompt in asked],
        "answers": answers,
        "stop": end,
        "tokens": TOKENS,
        "dtype": str(host.model.dtype).removeprefix("torch."),
        "base": str(source.folder or finish(source.download())),
        "trust_remote_code": host.spec.trust_remote_code,
        "parameters": names,
    }
    return request, tensors


def _fresh(folder: Path, reference: Path) -> Generator[Progress, None, dict[str, Any]]:
    """Run the reader; closing the generator ends it."""
    command = [sys.executable, "-m", "sst_ui.jobs.export.read_back", str(folder.absolute())]
    command += ["--reference", str(reference)]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(reference.with_suffix(".log"), "w+", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **offline}, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        assert child.stdout is not None  # a pipe
        found: dict[str, Any] = {}
        seen = Progress("reread", 0, 0)
        try:
            for line in _lines(child.stdout):
                yield seen  # also while the child loads, so that a cancelled job ends then
                try:
                    found = json.loads(line)
                except ValueError:  # a library that prints, or nothing yet
                    continue
                if "done" in found:
                    seen = Progress("reread", found["done"], found["total"])
                    yield seen
            child.wait()
        finally:
            child.kill()
            child.stdout.close()
            child.wait()
        if child.returncode or "answers" not in found:
            log.seek(0)
            said = log.read().strip().splitlines() or [f"it ended with {child.returncode}"]
            raise UserError(f"a fresh process cannot read what was written: {said[-1][:300]}")
    return found


def _lines(stream: IO[str]) -> Iterator[str]:
    """The lines of a child's output as they come, and an empty one whenever none came for `LOOK`
    seconds. Ends with the output."""
    told: Queue[str | None] = Queue()

    def read() -> None:
        with suppress(ValueError, OSError):  # closed meanwhile
            for line in stream:
                told.put(line)
        told.put(None)

    threading.Thread(target=read, name="verify-output", daemon=True).start()
    while True:
        try:
            line = told.get(timeout=LOOK)
        except Empty:
            line = ""
        if line is None:
            return
        yield line


def _judged(
    host: Host,
    request: dict[str, Any],
    found: dict[str, Any],
    tensors: dict[str, Tensor],
    approximate: bool,
) -> Verification:
    types = [request["dtype"], *(NAMES.get(name, "bfloat16") for name in found["stored"])]
    tolerance = max(LOGITS.get(name, LOGITS["bfloat16"]) for name in types)
    allowed = max(RESIDUE.get(name, RESIDUE["bfloat16"]) for name in types)
    pairs = zip(found["errors"], found["spans"], strict=True)
    shares = [e / s if s else e for errors, s in pairs for e in errors]
    error = math.inf if any(map(math.isnan, shares)) else max(shares, default=0.0)
    # rounding may send a token to other experts, which is no small change; then half of them count
    mixture = any(writer.form == "experts" for writer in host.architecture.writers)
    judged = min(error, median(shares)) if mixture and shares and math.isfinite(error) else error
    same = ties = 0
    for number, (mine, theirs) in enumerate(zip(request["answers"], found["answers"], strict=True)):
        mine = [token for token in mine if token not in host.stop]
        if mine == theirs:
            same += 1
        elif _tie(mine, theirs, tensors[f"logprobs.{number}"], max(found["errors"][number]), host):
            ties += 1
    residues = found["residues"]
    worst = max(residues, key=residues.get, default="")
    residue = residues[worst] if residues else None
    tokens = None
    if found["tokens"] is not None:
        both = zip(request["prompts"], found["tokens"], strict=True)
        tokens = sum(mine == theirs for mine, theirs in both)
    fine = same + ties == len(found["answers"]) and judged <= tolerance
    fine = fine and tokens in (None, len(found["answers"]))
    fine = fine and (residue is None or residue <= allowed)
    return Verification(
        len(found["answers"]), same, ties, error, tolerance, residue, allowed, worst,
        len(residues), found["reader"], bool(fine or approximate), tokens,
    )  # fmt: skip


def _tie(mine: list[int], theirs: list[int], logprobs: Tensor, error: float, host: Host) -> bool:
    """Whether two answers part at a token where the live model's preference is within rounding."""
    pairs = zip_longest(mine, theirs)
    place = next(i for i, (one, two) in enumerate(pairs) if one != two)
    if place >= len(logprobs):  # the live answer ended there at its longest
        return False
    row = logprobs[place]
    other = theirs[place] if place < len(theirs) else max(host.stop, key=lambda t: float(row[t]))
    return float(row.max() - row[other]) <= 2 * error


def _room(host: Host) -> str:
    """Where a second copy of the model fits: the model's own device, or else the CPU."""
    needed = sum(p.numel() * p.element_size() for p in host.model.parameters())
    if host.device.type == "cuda" and not host.lent:
        free, _ = torch.cuda.mem_get_info(host.device)
        if free > 1.2 * needed:
            return str(host.device)
    free = psutil.virtual_memory().available
    if free < 1.1 * needed:
        raise UserError(
            f"verifying loads a second copy of the model, {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free; export without verifying, or free some."
        )
    return "cpu"
