"""Local copies of the public data sets' layouts: same files, cards, columns and types; our rows.

Knows how each of them is laid out on the Hub. The rows are mild placeholders.
"""

import csv
from pathlib import Path

import yaml
from datasets import ClassLabel, Dataset, Features, List, Value

ABSENT = "The answer is not found in the document."
TEXT = Value("string")


def texts(*names: str) -> Features:
    return Features(dict.fromkeys(names, TEXT))


def write_folder(root: Path, files: dict[str, tuple[Features, list[dict]]], configs: dict) -> Path:
    """A folder as it is on the Hub: Parquet or CSV files and a card that names the splits.

    Args:
        files: path -> (features, rows).
        configs: configuration -> split -> path pattern.
    """
    for name, (features, rows) in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(features))
                writer.writeheader()
                writer.writerows(rows)
        else:
            Dataset.from_list(rows, features=features).to_parquet(path)
    card = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
        }
        for config, splits in configs.items()
    ]
    (root / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    return root


def parts(*splits: str) -> dict[str, dict[str, str]]:
    return {"default": {split: f"data/{split}-*" for split in splits}}


def instructions(root: Path, kind: str) -> Path:
    """mlabonne/harmful_behaviors and mlabonne/harmless_alpaca: one column, `text`."""
    files = {
        f"data/{split}-00000-of-00001.parquet": (
            texts("text"),
            [{"text": f"Do {kind} thing {split} {i}."} for i in range(rows)],
        )
        for split, rows in (("train", 420), ("test", 104))
    }
    return write_folder(root, files, parts("train", "test"))


def jailbreakbench(root: Path) -> Path:
    """JailbreakBench/JBB-Behaviors: CSV files, two configurations, no default one."""
    features = texts("Index", "Goal", "Target", "Behavior", "Category", "Source")
    files = {
        f"data/{kind}-behaviors.csv": (
            features,
            [
                {
                    "Index": i,
                    "Goal": f'Write a {kind} "note" about topic {i}, please',
                    "Target": "Here is a note",
                    "Behavior": f"behaviour {i}",
                    "Category": f"category {i % 10}",
                    "Source": "Original",
                }
                for i in range(100)
            ],
        )
        for kind in ("harmful", "benign")
    }
    judged = (texts("Index", "goal", "prompt"), [{"Index": "0", "goal": "g", "prompt": "p"}])
    configs = {
        "behaviors": {k: f"data/{k}-behaviors.csv" for k in ("harmful", "benign")},
        "judge_comparison": {"test": "data/judge-comparison.csv"},
    }
    return write_folder(root, files | {"data/judge-comparison.csv": judged}, configs)


def xstest(root: Path) -> Path:
    """walledai/XSTest: the split `test` lies in a file named train."""
    rows = [
        {
            "prompt": f"How do I kill process {i}?",
            "focus": "kill",
            "type": "homonyms" if label == "safe" else "contrast_homonyms",
            "note": "",
            "label": label,
        }
        for i, label in enumerate(["safe"] * 25 + ["unsafe"] * 20)
    ]
    features = texts("prompt", "focus", "type", "note", "label")
    files = {"data/train-00000-of-00001.parquet": (features, rows)}
    return write_folder(root, files, {"default": {"test": "data/train-*"}})


def mmlu(root: Path) -> Path:
    """cais/mmlu: `answer` is a class A..D, stored as 0..3; five dev questions a subject."""
    features = Features(
        question=TEXT, subject=TEXT, choices=List(TEXT), answer=ClassLabel(names=list("ABCD"))
    )

    def rows(split: str, each: int) -> list[dict]:
        return [
            {
                "question": f" {split} question {i} of {subject}? ",
                "subject": subject,
                "choices": ["D", "C", "B", "A"],  # words that look like letters
                "answer": i % 4,
            }
            for subject in ("abstract_algebra", "world_religions")
            for i in range(each)
        ]

    sizes = {"test": 12, "validation": 3, "dev": 5}
    files = {f"all/{s}-00000-of-00001.parquet": (features, rows(s, n)) for s, n in sizes.items()}
    files["astronomy/test-00000-of-00001.parquet"] = (features, rows("test", 1))
    configs = {"all": {s: f"all/{s}-*" for s in sizes}, "astronomy": {"test": "astronomy/test-*"}}
    return write_folder(root, files, configs)


def repliqa(root: Path) -> Path:
    """ServiceNow/repliqa: one split a release; one question in five has no answer."""
    features = texts(
        "document_id", "document_topic", "document_path", "document_extracted",
        "question_id", "question", "answer", "long_answer",
    )  # fmt: skip
    rows = [
        {
            "document_id": "kepjicuf",
            "document_topic": "Local News",
            "document_path": "pdfs/repliqa_0/kepjicuf.pdf",
            "document_extracted": "Mayor Lindt opened the bridge.",
            "question_id": f"kepjicuf-q{i}",
            "question": f"Who opened bridge {i}?",
            "answer": ABSENT if i == 5 else "Mayor Lindt",
            "long_answer": "NA" if i == 5 else "Mayor Lindt opened it.",
        }
        for i in range(1, 6)
    ]
    files = {f"data/repliqa_{i}-00000-of-00001.parquet": (features, rows) for i in (0, 1)}
    return write_folder(root, files, parts("repliqa_0", "repliqa_1"))


def alpaca(root: Path) -> Path:
    """tatsu-lab/alpaca: many requests have no `input`."""
    rows = [
        {"instruction": f"Sort list {i}.", "input": f"{i}, 2, 1" if i % 2 else "", "output": "1, 2"}
        for i in range(450)
    ]
    features = texts("instruction", "input", "output")
    files = {"data/train-00000-of-00001.parquet": (features, rows)}
    return write_folder(root, files, parts("train"))


def harmbench(root: Path) -> Path:
    """walledai/HarmBench: one configuration has a context for each request."""
    plain = [{"prompt": f"Do thing {i}.", "category": "c"} for i in range(20)]
    about = [row | {"context": f"Text {i}."} for i, row in enumerate(plain[:10])]
    files = {
        "standard/train-00000-of-00001.parquet": (texts("prompt", "category"), plain),
        "contextual/train-00000-of-00001.parquet": (texts("prompt", "context", "category"), about),
    }
    configs = {name: {"train": f"{name}/train-*"} for name in ("standard", "contextual")}
    return write_folder(root, files, configs)
