"""Pushing a folder to a stand-in for the Hub on loopback, by huggingface_hub in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standin import TOKEN, standin

ROOT = Path(__file__).resolve().parents[2]
PUSH = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from sst_ui.errors import UserError
from sst_ui.jobs.export.push import push
from sst_ui.progress import finish

seen = []
try:
    options = json.loads(sys.argv[3])
    done = finish(push(Path(sys.argv[1]), sys.argv[2], **options), seen.append)
    print(json.dumps({"pushed": asdict(done), "fractions": [p.fraction for p in seen]}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def hub():
    with standin() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "export"
    (folder / "adapter").mkdir(parents=True)
    (folder / "README.md").write_text("---\ntags: [abliterated]\n---\n# A model\n")
    (folder / "config.json").write_text("{}")
    (folder / "model-1.safetensors").write_bytes(bytes(range(256)) * 20)
    (folder / "model-2.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "adapter" / "weights.safetensors").write_bytes(bytes(range(256)) * 60)
    (folder / ".hidden").write_text("not for the Hub")
    return folder


def push(hub, folder, repo="ada/edited", token=TOKEN, offline="0", given=None, **options):
    """Run a push where the Hub is not switched off, as it is in this process."""
    home = {"HF_HOME": str(folder.parent / "home"), "HF_TOKEN": token or ""}
    env = {**os.environ, **home, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": offline}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    options |= {"token": given} if given else {}
    command = [sys.executable, "-c", PUSH, str(folder), repo, json.dumps(options)]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def visible(folder):
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != ".hidden"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def test_a_push_makes_a_private_repository_with_every_file_in_one_commit(hub, folder):
    done = push(hub, folder)["pushed"]
    repo = hub.repos["ada/edited"]
    assert repo["files"] == visible(folder)
    assert repo["private"] is True
    assert done["private"] is True
    assert repo["commits"] == 1
    assert done["url"] == f"{hub.url}/ada/edited"
    assert done["bytes"] == sum(map(len, visible(folder).values()))


def test_a_name_alone_is_the_account_of_the_token_and_public_is_as_asked(hub, folder):
    push(hub, folder, "mine", private=False)
    assert hub.repos["ada/mine"]["private"] is False


def test_a_token_can_be_given_and_progress_reaches_the_end(hub, folder):
    assert "no Hugging Face token" in push(hub, folder, token="")["error"]
    found = push(hub, folder, token="", given=TOKEN)
    assert found["fractions"] == sorted(found["fractions"])
    assert found["fractions"][-1] == 1
    assert hub.repos["ada/edited"]["files"] == visible(folder)


def test_a_failed_push_leaves_nothing_visible_and_the_next_sends_only_the_rest(hub, folder):
    hub.spare, hub.fail_puts = 2, 1  # the third large file is refused
    failed = push(hub, folder)
    assert "Push again" in failed["error"]
    assert hub.repos["ada/edited"]["files"] == {}
    first, hub.puts = hub.puts[:2], []
    assert "pushed" in push(hub, folder)
    assert len(hub.puts) == 1
    assert hub.puts[0] not in first
    assert hub.repos["ada/edited"]["files"] == visible(folder)
    hub.puts = []
    assert "pushed" in push(hub, folder)  # and a third time there is nothing to send
    assert hub.puts == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": "wrong"}, "does not accept the token"),
        ({"repo": "other/edited"}, "may not write to other/edited"),
        ({"repo": "a b"}, "not a valid repository name"),
        ({"offline": "1"}, "HF_HUB_OFFLINE"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(hub, folder, options, words):
    assert words in push(hub, folder, **options)["error"]


def test_a_folder_that_is_not_there_or_empty_is_refused(hub, folder, tmp_path):
    assert "is not a folder" in push(hub, tmp_path / "none")["error"]
    (tmp_path / "empty").mkdir()
    assert "no files" in push(hub, tmp_path / "empty")["error"]
