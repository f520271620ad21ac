"""The callback in the Trainers of sentence-transformers, unchanged: their losses, batches and evaluators."""

from __future__ import annotations

import copy
import json
from importlib import import_module

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModel, Trainer, TrainingArguments

from hf_headprune import (
    AStarSearch,
    Distillation,
    HeadPruneCallback,
    PruningPlan,
    PruningResult,
    anatomy_of,
    prune_model_,
    search_plan,
)
from hf_headprune.callback.trainer_compat import model_of
from hf_headprune.errors import InvalidSettingError, TrainingStateError
from hf_headprune.publish.report import PruningReport
from hf_headprune.tasks.examples import PadRight
from hf_headprune.tasks.scores import ScoredExamples
from tests.support.models import tiny_bert, tiny_distilbert
from tests.support.tasks import texts
from tests.support.texts import WORDS, save_text_model
from tests.support.trainers import GATES, InterruptAt

st = pytest.importorskip("sentence_transformers", reason="sentence-transformers comes with the extra `demo`")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def embedder(tmp_path):
    folder = save_text_model(tmp_path / "text", "BertModel")
    return st.SentenceTransformer(str(folder), device="cpu")


def sentences(count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 6)) for _ in range(count)]


def scored_pairs(count=32, seed=0):
    scores = np.random.default_rng(seed).random(count).tolist()
    both = {"sentence1": sentences(count, seed + 10), "sentence2": sentences(count, seed + 20)}
    return Dataset.from_dict({**both, "score": scores})


def arguments(kind, folder, **settings):
    common = {"per_device_train_batch_size": 8, "max_steps": 3, "save_strategy": "no", "report_to": "none"}
    return kind(str(folder), use_cpu=True, disable_tqdm=True, learning_rate=1e-3, **(common | settings))


def trained(model, tmp_path, callback, **others):
    names = {"SentenceTransformer": "SentenceTransformer", "CrossEncoder": "CrossEncoder"}
    name = names[type(model).__name__]
    kind = getattr(st, f"{name}TrainingArguments", None) or getattr(st.cross_encoder, f"{name}TrainingArguments")
    trainer_class = getattr(st, f"{name}Trainer", None) or getattr(st.cross_encoder, f"{name}Trainer")
    given = {"train_dataset": scored_pairs(), "eval_dataset": scored_pairs(seed=1)} | others
    trainer = trainer_class(model=model, args=arguments(kind, tmp_path / "run"), callbacks=[callback], **given)
    trainer.train()
    return trainer


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def assert_reads_again(model, folder, read):
    """What was saved is one pruned model that computes the same."""
    model.save_pretrained(str(folder))
    again = type(model)(str(folder), device="cpu")
    assert json.loads((folder / "config.json").read_text())["model_type"].startswith("prunable_")
    assert parameters(again) == parameters(model)
    np.testing.assert_array_equal(read(again), read(model))


def test_the_card_of_sentence_transformers_keeps_our_section_while_the_weights_are_the_same(embedder, tmp_path):
    inner = embedder[0].auto_model
    plan = PruningPlan.of(inner).replace(kept_heads={"encoder.layer.0.attention": (0,)})
    report = PruningReport.of(plan, anatomy_of(inner))
    prune_model_(inner, PruningResult(plan, reference=PruningPlan.of(inner), report=report))
    card, found = tmp_path / "saved" / "README.md", []
    for _ in range(2):
        embedder.save_pretrained(str(tmp_path / "saved"))
        found.append(card.read_text())
    assert found[0] == found[1]
    assert found[0].count("## What was pruned") == 1
    assert "sentence-transformers" in found[0]
    assert "- pruned" in found[0]
    assert found[0].count('SentenceTransformer("<this model>"') == 2
    assert "from transformers import" not in found[0]
    embedder.save_pretrained(str(tmp_path / "bare"), create_model_card=False)
    assert not (tmp_path / "bare" / "README.md").exists()
    again = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    again.save_pretrained(str(tmp_path / "again"))
    assert (tmp_path / "again" / "README.md").read_text().count("## What was pruned") == 1
    with torch.no_grad():
        next(again.parameters()).add_(1)
    again.save_pretrained(str(tmp_path / "again"))
    assert "## What was pruned" not in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize("loss", ["CoSENTLoss", "MultipleNegativesRankingLoss"])
def test_a_budget_is_met_under_losses_that_run_the_model_twice(embedder, tmp_path, loss):
    before = parameters(embedder)
    data = scored_pairs() if loss == "CoSENTLoss" else scored_pairs().remove_columns("score")
    made = getattr(st.sentence_transformer.losses, loss)(embedder)
    callback = HeadPruneCallback(density=0.5)
    trained(embedder, tmp_path, callback, train_dataset=data, eval_dataset=data, loss=made)
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0
    assert parameters(embedder) < before
    assert_reads_again(embedder, tmp_path / "saved", lambda model: model.encode(sentences(5, 3)))


@pytest.mark.parametrize("how", [{"density": 0.5}, {"gates": GATES}], ids=["costs", "gates"])
def test_a_loss_that_runs_the_model_again_in_its_backward_pass_prunes(embedder, tmp_path, how):
    data = scored_pairs().remove_columns("score")
    loss = st.sentence_transformer.losses.CachedMultipleNegativesRankingLoss(embedder, mini_batch_size=4)
    callback = HeadPruneCallback(**how, latency=None)
    args = arguments(st.SentenceTransformerTrainingArguments, tmp_path / "run", max_steps=10)
    st.SentenceTransformerTrainer(
        model=embedder, args=args, train_dataset=data, loss=loss, callbacks=[callback]
    ).train()
    assert callback.plan.num_removed_heads > 0


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_an_evaluator_that_names_its_metric_before_it_has_run_decides(tmp_path):
    evaluation = import_module("sentence_transformers.cross_encoder.evaluation")
    model = st.CrossEncoder(str(save_text_model(tmp_path / "text", "BertModel")), num_labels=1, device="cpu")
    rows = scored_pairs(24, seed=5)
    pairs = list(zip(rows["sentence1"], rows["sentence2"], strict=True))
    evaluator = evaluation.CrossEncoderCorrelationEvaluator(pairs, rows["score"], name="dev")
    callback = HeadPruneCallback(max_drop=0.9, latency=None)
    trained(model, tmp_path, callback, eval_dataset=None, evaluator=evaluator)
    assert callback.report.metric.name == "dev_spearman"


def test_a_search_goes_through_a_metric_that_runs_in_inference_mode(embedder):
    rows = sentences(12, 5)

    @torch.inference_mode()
    def nearness(model):
        tokens = torch.tensor(embedder.tokenizer(rows, padding=True)["input_ids"])
        return float(model(tokens)[0].mean())

    search = AStarSearch(max_drop=0.5, max_evaluations=5)
    result = search_plan(embedder[0].auto_model, None, metric=nearness, search=search)
    prune_model_(embedder[0].auto_model, result)
    embedder[0].auto_model(torch.tensor([[5, 6, 7]]))[0].sum().backward()


def test_a_cross_encoder_is_pruned_under_a_loss_without_labels(tmp_path):
    model = st.CrossEncoder(str(save_text_model(tmp_path / "text", "BertModel")), num_labels=1, device="cpu")
    loss = st.cross_encoder.losses.MultipleNegativesRankingLoss(model, num_negatives=2)
    data = scored_pairs().remove_columns("score")
    callback = HeadPruneCallback(density=0.5, latency=None)
    trained(model, tmp_path, callback, train_dataset=data, eval_dataset=None, loss=loss)
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"density": 0.5}, {"gates": GATES}], ids=str)
def test_a_run_that_was_killed_ends_as_one_that_was_not(embedder, tmp_path, how):
    def trainer_in(folder, *callbacks):
        kind = st.SentenceTransformerTrainingArguments
        args = arguments(kind, tmp_path / folder, max_steps=6, save_strategy="steps", save_steps=2)
        chosen = [callback := HeadPruneCallback(**how, latency=None), *callbacks]
        model = copy.deepcopy(embedder)
        return st.SentenceTransformerTrainer(model, args, train_dataset=scored_pairs(), callbacks=chosen), callback

    whole, expected = trainer_in("whole")
    whole.train()
    killed, _ = trainer_in("killed", InterruptAt(5))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed, callback = trainer_in("killed")
    resumed.train(resume_from_checkpoint=True)
    assert callback.plan == expected.plan
    read = [model.encode(sentences(4, 7)) for model in (resumed.model, whole.model)]
    np.testing.assert_allclose(*read, rtol=0, atol=1e-6)


def test_a_loss_for_each_of_several_data_sets_is_refused(embedder, tmp_path):
    losses = {name: st.sentence_transformer.losses.CoSENTLoss(embedder) for name in ("a", "b")}
    data = DatasetDict({name: scored_pairs(seed=seed) for seed, name in enumerate(losses)})
    with pytest.raises(TrainingStateError, match="a loss for each of several data sets"):
        trained(embedder, tmp_path, HeadPruneCallback(density=0.5), train_dataset=data, eval_dataset=data, loss=losses)


@pytest.mark.slow
def test_the_evaluators_own_metric_decides_without_an_eval_dataset(embedder, tmp_path):
    rows = scored_pairs(24, seed=5)
    evaluation = import_module("sentence_transformers.sentence_transformer.evaluation")
    evaluator = evaluation.EmbeddingSimilarityEvaluator(*(rows[name] for name in rows.column_names), name="dev")
    callback = HeadPruneCallback(max_drop=0.9)
    trained(embedder, tmp_path, callback, eval_dataset=None, evaluator=evaluator)
    assert callback.report.metric.name == "dev_spearman_cosine"
    assert "Metric: dev_spearman_cosine on examples (of the evaluator); before: " in callback.report.to_text()
    assert callback.report.metric.after == pytest.approx(evaluator(embedder)["dev_spearman_cosine"], abs=1e-6)
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0
    assert "nothing scores single examples of a SentenceTransformer" in callback.report.certificate


@pytest.mark.slow
def test_without_an_evaluator_the_loss_decides(embedder, tmp_path):
    callback = HeadPruneCallback(max_drop=0.5, confidence=None)
    trained(embedder, tmp_path, callback)
    assert callback.report.metric.name == "loss"
    assert callback.report.metric.after - callback.report.metric.before <= 0.5 + 1e-6


@pytest.mark.slow
def test_a_cross_encoder_is_pruned_saved_and_read_as_one(tmp_path):
    folder = save_text_model(tmp_path / "text", "BertForSequenceClassification", num_labels=1)
    model = st.CrossEncoder(str(folder), num_labels=1, device="cpu")
    callback = HeadPruneCallback(kept_heads=3)
    trainer = trained(model, tmp_path, callback)
    assert callback.plan.num_kept_heads == 3
    model_of(trainer).save_pretrained(tmp_path / "inside")  # the card is about the model inside
    assert "AutoModelForSequenceClassification.from_pretrained" in (tmp_path / "inside" / "README.md").read_text()
    pairs = list(zip(sentences(5, 3), sentences(5, 4), strict=True))
    assert_reads_again(model, tmp_path / "saved", lambda it: it.predict(pairs))


def test_a_teacher_of_a_cross_encoder_is_refused_when_the_trainer_is_built(tmp_path):
    folder = save_text_model(tmp_path / "text", "BertForSequenceClassification", num_labels=3)
    model, teacher = (st.CrossEncoder(str(folder), device="cpu") for _ in range(2))
    callback = HeadPruneCallback(density=0.5, distillation=Distillation(teacher))
    with pytest.raises(InvalidSettingError, match="loss of a CrossEncoder runs the model on its own"):
        trained(model, tmp_path, callback)


@pytest.mark.slow
def test_a_sentence_transformer_learns_from_the_dense_embeddings_without_labels(embedder, tmp_path):
    dense = copy.deepcopy(embedder)
    callback = HeadPruneCallback(density=0.5, distillation=Distillation(dense))
    data = Dataset.from_dict({"sentence": sentences(64, 0)})
    trained(embedder, tmp_path, callback, train_dataset=data, eval_dataset=data)
    unseen = sentences(20, 7)
    near = np.sum([it.encode(unseen, normalize_embeddings=True) for it in (embedder, dense)], axis=0)
    near = np.square(near).sum(axis=1) / 2 - 1  # cosine similarity of unit vectors
    assert 0.5 < near.min() < near.mean() < 0.99999
    assert parameters(embedder) < parameters(dense)


def plain(folder, model, callback, **settings):
    given = {"max_steps": 12, "learning_rate": 1e-3, "save_strategy": "no", "report_to": "none"} | settings
    args = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=8, **given)
    data = {"train_dataset": texts(64), "eval_dataset": texts(40, seed=1), "data_collator": PadRight(0)}
    return Trainer(model=model, args=args, callbacks=[] if callback is None else [callback], **data)


@pytest.mark.slow
def test_a_model_without_a_head_is_cut_and_distilled_in_a_plain_trainer(tmp_path):
    model = tiny_distilbert(None)
    dense = copy.deepcopy(model)
    callback = HeadPruneCallback(density=0.5, distillation=Distillation(dense))
    trainer = plain(tmp_path, model, callback)
    trainer.train()
    claim = callback.certificate.claim
    assert (claim.metric, callback.certificate.reference) == ("similarity to the dense embeddings", "the teacher")
    assert 0 < callback.certificate.evidence.pruned_metric < 1
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModel.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(again.eval()(ids).last_hidden_state, model.eval()(ids).last_hidden_state)


@pytest.mark.slow
def test_distillation_brings_a_pruned_model_nearer_to_the_dense_embeddings(tmp_path):
    dense, model = (tiny_distilbert(None, dropout=0.0, attention_dropout=0.0) for _ in range(2))
    first = HeadPruneCallback(density=0.4, distillation=Distillation(dense), confidence=None)
    plain(tmp_path, model, first, max_steps=1).train()

    def distance():
        return float(1 - ScoredExamples(dense, texts(64), where="test").scores_of(model).mean())

    before = distance()
    second = HeadPruneCallback(density=1.0, distillation=Distillation(dense), confidence=None)
    plain(tmp_path, model, second, max_steps=30, learning_rate=1e-4).train()
    assert distance() < 0.7 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 3.0}, "learns from the teacher's embeddings alone"),
        ({"alpha_hidden": 1.0}, "without other settings"),
    ],
)
def test_other_losses_beside_the_embeddings_are_refused(tmp_path, settings, message):
    callback = HeadPruneCallback(density=0.5, distillation=Distillation(tiny_bert(None), **settings))
    with pytest.raises(InvalidSettingError, match=message):
        plain(tmp_path, tiny_bert(None), callback)


def test_a_teacher_that_shares_weights_with_the_embedding_student_is_refused(tmp_path):
    model = tiny_bert(None)
    with pytest.raises(InvalidSettingError, match="shares weights"):
        plain(tmp_path, model, HeadPruneCallback(density=0.5, distillation=Distillation(model)))


def test_a_module_that_cannot_save_what_is_in_it_is_not_looked_into(tmp_path):
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = tiny_bert(None)

    trainer = plain(tmp_path, tiny_bert(None), None)
    trainer.model = Holder()
    assert model_of(trainer) is trainer.model
