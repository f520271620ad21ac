"""The callback in Trainers that other libraries build on that of Transformers, unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from hf_headprune import HeadPruneCallback
from hf_headprune.tasks.examples import PadRight
from tests.support.models import tiny_marian
from tests.support.tasks import pairs
from tests.support.texts import WORDS, save_text_model

pytestmark = pytest.mark.filterwarnings("ignore")  # those libraries' own


def sentences(count=40):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 6)) for _ in range(count)]


def language_trainer(folder, callback, **settings):
    """A Trainer of TRL for a tiny model that knows a few words."""
    trl = pytest.importorskip("trl", reason="TRL comes with the extra `dev`")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        save_text_model(folder / "text", "BertModel"), eos_token="[SEP]"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids))
    how = {"max_steps": 3, "per_device_train_batch_size": 8, "save_strategy": "no", "report_to": "none"} | settings
    arguments = trl.SFTConfig(str(folder / "run"), use_cpu=True, bf16=False, disable_tqdm=True, **how)
    texts = Dataset.from_dict({"text": sentences()})
    data = {"train_dataset": texts, "eval_dataset": texts.select(range(16))}
    return trl.SFTTrainer(model=model, args=arguments, processing_class=tokenizer, callbacks=[callback], **data)


@pytest.mark.parametrize("budget", [{"density": 0.6}, {"max_drop": 0.02}], ids=["a size", "a drop"])
def test_trl_fine_tunes_and_prunes_a_language_model(tmp_path, budget, caplog):
    trainer = language_trainer(tmp_path, callback := HeadPruneCallback(**budget, latency=None))
    trainer.train()
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0
    assert "Only output projections are refitted" not in caplog.text
    trainer.save_model(str(tmp_path / "saved"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(tokens).logits, trainer.model.eval()(tokens).logits)


def test_packed_texts_are_pruned_to_a_size_without_a_certificate(tmp_path):
    callback = HeadPruneCallback(density=0.6, recover_epochs=1, latency=None)
    language_trainer(tmp_path, callback, packing=True, max_length=32).train()
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0
    assert callback.certificate is None


def test_packed_texts_are_compared_by_the_loss_since_no_evaluation_returns_their_likelihood(tmp_path):
    callback = HeadPruneCallback(max_drop=0.3, latency=None)
    language_trainer(tmp_path, callback, packing=True, max_length=32).train()
    assert callback.report.metric.name == "loss"
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0


def test_setfit_trains_its_head_on_the_pruned_body(tmp_path):
    setfit = pytest.importorskip("setfit", reason="SetFit comes with the extra `dev`")
    model = setfit.SetFitModel.from_pretrained(str(save_text_model(tmp_path / "text", "BertModel")), device="cpu")
    texts = sentences()
    data = Dataset.from_dict({"text": texts, "label": [int("kite" in text) for text in texts]})
    how = {"batch_size": 8, "max_steps": 3, "save_strategy": "no", "report_to": "none"}
    callback = HeadPruneCallback(density=0.6, latency=None)
    arguments = setfit.TrainingArguments(output_dir=str(tmp_path / "run"), **how)
    setfit.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback]).train()
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0
    model.save_pretrained(str(tmp_path / "saved"))
    again = setfit.SetFitModel.from_pretrained(str(tmp_path / "saved"), device="cpu")
    assert type(again.model_body.transformers_model).__name__ == "PrunableBertModel"
    np.testing.assert_allclose(again.predict_proba(texts[:4]), model.predict_proba(texts[:4]), atol=1e-6)


def test_a_sequence_to_sequence_trainer_generates_with_the_pruned_model(tmp_path):
    model = tiny_marian(forced_eos_token_id=None)
    rows = [{**row, "labels": row["labels"][:5]} for row in pairs(24)]
    how = {"max_steps": 3, "per_device_train_batch_size": 8, "save_strategy": "no", "report_to": "none"}
    arguments = transformers.Seq2SeqTrainingArguments(
        str(tmp_path / "run"),
        use_cpu=True,
        disable_tqdm=True,
        predict_with_generate=True,
        generation_max_length=6,
        **how,
    )
    callback = HeadPruneCallback(density=0.6, latency=None)
    trainer = transformers.Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows[:8],
        data_collator=PadRight(model.config.pad_token_id),
        compute_metrics=lambda found: {"texts": float(len(found.predictions))},
        callbacks=[callback],
    )
    trainer.train()
    assert callback.plan.num_removed_heads + callback.plan.num_removed_ffn > 0
    assert trainer.evaluate()["eval_texts"] == 8
