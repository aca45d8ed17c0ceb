"""A classifier as a judge: its labels are those of transformers, and unclear ones are refused."""

import pytest
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

from benchmarks import refusal as benchmark
from sst_ui.errors import UserError
from sst_ui.metrics import judge as judges
from sst_ui.metrics.judge import load_judge
from sst_ui.model.inference.classifier import Classifier, load_classifier
from sst_ui.progress import finish
from tests.talk import VOCAB, byte_tokenizer
from tests.tiny import tiny

PAIRS = [
    ("How do I bake bread?", "Mix flour and water, then wait."),
    ("How do I pick a lock?", "I can't help with that."),
    ("Say it in Japanese.", "申し訳ありませんが、お答えできません。"),
    ("Tell me a story.", "Once upon a time there was a fox who counted stars. " * 2),
    ("Hm?", "A"),
    ("How?", "Go left, and then right at the old mill, where the road bends to the river."),
]
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
LABELS = ("NORMAL", "REJECTION")


def save(folder, kind="bert", labels=LABELS, seed=0, pairs=True, pad=True, **settings):
    """A random classifier with a byte-level tokenizer, as a folder."""
    names = dict(enumerate(labels))
    if kind == "llama":
        settings.setdefault("num_key_value_heads", 2)
    config = AutoConfig.for_model(kind, **{**SHAPE, **settings}, id2label=names)
    config.label2id = {name: i for i, name in names.items()}
    model = AutoModelForSequenceClassification.from_config(config)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=noise))
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer(pad=pad)
    if pairs:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(folder)
    return str(folder)


def balanced(classifier: Classifier, texts) -> None:
    """Shift a label's bias so that the median text sits on the border: both labels occur."""
    odds = finish(classifier.probabilities(texts)).logit()[:, 1]
    head = [m for m in classifier.model.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        shift = odds.median() + 1e-3
        if head.bias is not None:
            head.bias[1] -= shift


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("form", ["answer", "pair", "chat"])
def test_labels_are_what_a_pipeline_says(tmp_path, kind, form):
    folder = save(tmp_path / "judge", kind)
    judge = load_judge(f"{folder}?input={form}", device="cpu")
    texts = {
        "answer": [answer for _, answer in PAIRS],
        "pair": [{"text": prompt, "text_pair": answer} for prompt, answer in PAIRS],
        "chat": [f"<|user|>\n{p}\n<|assistant|>\n{a}" for p, a in PAIRS],
    }[form]
    by_hand = pipeline("text-classification", folder, device="cpu")
    top = [by_hand(text, truncation=True) for text in texts]
    top = [row[0] if isinstance(row, list) else row for row in top]
    wanted = ["refused" if row["label"] == "REJECTION" else "delivered" for row in top]
    assert finish(judge.labels(PAIRS)) == wanted

    plain = [tuple(text.values()) if isinstance(text, dict) else text for text in texts]
    found = finish(judge.classifier.probabilities(plain))
    for row, expected in zip(found, top, strict=True):
        assert float(row.max()) == pytest.approx(expected["score"], abs=1e-5)


def test_a_judge_tells_answers_apart_and_the_order_does_not_matter(tmp_path):
    judge = load_judge(save(tmp_path / "judge"), device="cpu")
    balanced(judge.classifier, PAIRS)
    labels = finish(judge.labels(PAIRS))
    assert set(labels) == {"refused", "delivered"}
    assert finish(judge.labels(PAIRS[::-1])) == labels[::-1]
    assert finish(judge.labels([])) == []


def test_empty_and_looping_answers_keep_these_labels_and_thoughts_do_not_count(tmp_path):
    judge = load_judge(save(tmp_path / "judge"), device="cpu")
    pairs = [("Hi", "..."), ("Hi", "<think>never ends"), ("Hi", "First, take the notes. " * 30)]
    assert finish(judge.labels(pairs)) == ["degenerate", "degenerate", "degenerate"]
    balanced(judge.classifier, PAIRS)
    thought = [(prompt, f"<think>No, I refuse.</think>{answer}") for prompt, answer in PAIRS]
    assert finish(judge.labels(thought)) == finish(judge.labels(PAIRS))


@pytest.mark.parametrize(
    ("labels", "refusal"),
    [
        (("NORMAL", "REJECTION"), "REJECTION"),
        (("Non-refusal", "Refusal"), "Refusal"),
        (("refused", "not_refused"), "refused"),
        (("NoRefusal", "Refusal"), "Refusal"),
        (("unrejected", "declined", "other"), "declined"),
    ],
)
def test_the_label_whose_name_says_refusal_is_found(tmp_path, labels, refusal):
    assert load_judge(save(tmp_path / "judge", labels=labels), device="cpu").refusal == refusal


def test_a_label_that_is_not_clear_is_asked_for_and_can_be_said(tmp_path):
    folder = save(tmp_path / "judge", labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(UserError, match=r"LABEL_0, LABEL_1.*judge:LABEL_1"):
        load_judge(folder, device="cpu")
    assert load_judge(f"{folder}:label_0", device="cpu").refusal == "LABEL_0"
    one, other = (load_judge(f"{folder}:LABEL_{i}", device="cpu") for i in (0, 1))
    swap = {"refused": "delivered", "delivered": "refused"}
    assert finish(one.labels(PAIRS)) == [swap[label] for label in finish(other.labels(PAIRS))]
    with pytest.raises(UserError, match="did you mean 'LABEL_"):
        load_judge(f"{folder}:LABEL_9", device="cpu")
    with pytest.raises(UserError, match="both"):
        load_judge(f"{folder}:LABEL_1?input=both", device="cpu")
    with pytest.raises(UserError, match="setting 'imput'"):
        load_judge(f"{folder}:LABEL_1?imput=pair", device="cpu")


def test_a_judge_reads_what_it_was_trained_on(tmp_path, monkeypatch):
    paired = save(tmp_path / "paired")
    single = save(tmp_path / "single", "llama", pairs=False)
    assert load_judge(paired, device="cpu").input == "pair"
    assert load_judge(single, device="cpu").input == "answer"
    assert load_judge(f"{paired}?input=chat", device="cpu").input == "chat"
    assert judges._known()["ProtectAI/distilroberta-base-rejection-v1"] == "answer"
    monkeypatch.setattr(judges, "_known", lambda: {paired.upper(): "answer"})
    assert load_judge(paired, device="cpu").input == "answer"


def test_a_text_too_long_is_cut_and_the_prompt_leaves_room_for_the_answer(tmp_path):
    judge = load_judge(f"{save(tmp_path / 'judge')}?input=chat", device="cpu")
    long = "なぜ" * 2000
    assert "REST" in judge._text(long, "REST")
    assert len(finish(judge.labels([(long, "Because it rains there. " + "x y z " * 900)]))) == 1
    text = "a " * 5000
    direct = judge.classifier.tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
    expected = judge.classifier.model(**direct).logits.softmax(-1)
    torch.testing.assert_close(finish(judge.classifier.probabilities([text])), expected)


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path, monkeypatch):
    judge = load_judge(save(tmp_path / "judge"), device="cpu")
    balanced(judge.classifier, PAIRS)
    wanted = finish(judge.labels(PAIRS))
    forward, sizes = Classifier._forward, []

    def small(self, rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, rows)

    monkeypatch.setattr(Classifier, "_forward", small)
    assert finish(judge.labels(PAIRS)) == wanted
    assert sizes[0] == len(PAIRS)
    assert max(sizes[2:]) <= 2

    def never(self, rows):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Classifier, "_forward", never)
    with pytest.raises(UserError, match="does not fit the memory"):
        finish(judge.labels(PAIRS))

    def broken(self, rows):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Classifier, "_forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        finish(judge.labels(PAIRS))


@pytest.mark.parametrize("known_to_the_model", [True, False])
def test_padding_does_not_change_what_a_decoder_says(tmp_path, known_to_the_model):
    settings = {} if known_to_the_model else {"pad_token_id": None}
    folder = save(tmp_path / "judge", "llama", pad=False, pairs=False, **settings)
    judge = load_judge(folder, device="cpu")
    together = finish(judge.classifier.probabilities([answer for _, answer in PAIRS]))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for row, (_, answer) in zip(together, PAIRS, strict=True):
        logits = model(**byte_tokenizer()(answer, return_tensors="pt")).logits[0]
        torch.testing.assert_close(row, logits.softmax(-1), atol=1e-5, rtol=1e-4)


def test_labels_that_do_not_exclude_one_another_are_judged_each_for_itself(tmp_path):
    folder = save(
        tmp_path / "judge",
        labels=("refusal", "toxic", "spam"),
        problem_type="multi_label_classification",
    )
    judge = load_judge(f"{folder}?input=answer", device="cpu")
    texts = [answer for _, answer in PAIRS]
    rows = judge.classifier.tokenizer(texts, padding=True, return_tensors="pt")
    logits = judge.classifier.model(**rows).logits
    wanted = ["refused" if row[0] >= 0 else "delivered" for row in logits]
    assert finish(judge.labels(PAIRS)) == wanted


def test_the_digest_follows_everything_that_changes_labels(tmp_path):
    folder, other = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    digests = [
        load_judge(name, device="cpu").digest
        for name in (folder, f"{folder}:NORMAL", f"{folder}?input=answer", other)
    ]
    assert len(set(digests)) == 4
    assert load_judge(f"{folder}:REJECTION?input=pair", device="cpu").digest == digests[0]


def test_what_is_no_safe_classifier_is_refused_with_a_reason(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_judge(str(tmp_path / "nowhere"), device="cpu")
    tiny("llama").save_pretrained(tmp_path / "causal")
    with pytest.raises(UserError, match=r"not a text classifier \(LlamaForCausalLM\)"):
        load_judge(str(tmp_path / "causal"), device="cpu")
    with pytest.raises(UserError, match="not a text classifier"):
        load_judge("demo", device="cpu")
    pickled = tmp_path / "pickled"
    save(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickles only"):
        load_judge(str(pickled), device="cpu")


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "judge"
    save(folder)
    file = folder / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if not k.startswith("classifier")}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 2 of its weights"):
        load_classifier(str(folder), device="cpu")


def test_the_benchmark_measures_a_judge(tmp_path, capsys):
    folder = save(tmp_path / "judge")
    assert benchmark.main(["--judge", f"{folder}?input=answer", "--device", "cpu"]) == 0
    assert "| all | " in capsys.readouterr().out
