"""A tiny model of every task whose examples are scored, examples, and their scores by a slow, obvious evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests.support.classifiers import decided, decisive
from tests.support.classifiers import examples as sentences
from tests.support.models import VOCAB_SIZE, tiny_bert, tiny_bert_decoder, tiny_distilbert, tiny_marian

NUM_TAGS = 4
LONGEST_ANSWER = 30


@dataclass(frozen=True)
class TinyTask:
    """How tests make a model of a task and its examples.

    Attributes:
        metric: Of the library.
        make: Makes the model.
        examples: Makes examples, `(count, seed) -> list`.
        score: Score of one example, `(model, example) -> float`.
        relabel: Gives most examples what the model answers, so that plans differ in what they lose; in place.
        kind: Of the scores.
        weight: Weight of an example in the metric of a search.
    """

    metric: str
    make: Callable[[], Any]
    examples: Callable[[int, int], list[dict[str, Any]]]
    score: Callable[[Any, dict[str, Any]], float]
    relabel: Callable[[Any, list[dict[str, Any]]], list[dict[str, Any]]]
    kind: str = "bounded"
    weight: Callable[[dict[str, Any]], float] = lambda example: 1.0

    def model(self) -> Any:
        """A model whose heads decide."""
        model = decisive(self.make())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "qa_outputs" in name or "lm_head" in name or "predictions.decoder" in name:
                    parameter.mul_(20.0)
                elif name == "classifier.weight" and len(parameter) == 1:
                    parameter.mul_(0.1)  # numbers in the range of the labels
                elif name == "classifier.bias" and len(parameter) == 1:
                    parameter.fill_(2.5)
            if "TokenClassification" in type(model).__name__:  # no tag is the answer to every token
                ids = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(0))
                model.classifier.bias -= model(input_ids=ids).logits[0].mean(dim=0)
        return model

    def dataset(self, model: Any, count: int = 30, seed: int = 0) -> list[dict[str, Any]]:
        """Examples, most of them labelled with what the model answers."""
        return self.relabel(model, self.examples(count, seed))

    def scores(self, model: Any, dataset: list[dict[str, Any]]) -> np.ndarray:
        """Score of each example, one after the other."""
        with torch.no_grad():
            return np.array([self.score(model, example) for example in dataset])

    def value(self, model: Any, dataset: list[dict[str, Any]]) -> float:
        """The metric of a search."""
        weights = np.array([self.weight(example) for example in dataset])
        return float((self.scores(model, dataset) * weights).sum() / weights.sum())


def outputs_of(model, example, **more):
    return model(input_ids=torch.tensor([example["input_ids"]]), **more)


def sequences(count, generator):
    lengths = torch.randint(4, 12, (count,), generator=generator).tolist()
    return [torch.randint(3, 90, (length,), generator=generator).tolist() for length in lengths]


def spans(count=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for place, ids in enumerate(sequences(count, generator)):
        start = int(torch.randint(1, len(ids), (1,), generator=generator))
        end = int(torch.randint(start, len(ids), (1,), generator=generator))
        is_answered = place % 4 > 0
        positions = {"start_positions": start * is_answered, "end_positions": end * is_answered}
        examples.append({"input_ids": ids, **positions})
    return examples


def tags(count=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for ids in sequences(count, generator):
        labels = torch.randint(0, NUM_TAGS, (len(ids),), generator=generator)
        labels[torch.rand(len(ids), generator=generator) < 0.4] = -100
        labels[0] = 1
        examples.append({"input_ids": ids, "labels": labels.tolist()})
    return examples


def pairs(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sources, targets = sequences(count, generator), sequences(count, generator)
    return [
        {"input_ids": s, "labels": t[: 3 + place % 5]}
        for place, (s, t) in enumerate(zip(sources, targets, strict=True))
    ]


def texts(count=20, seed=0):
    return [{"input_ids": ids} for ids in sequences(count, torch.Generator().manual_seed(seed))]


def numbers(count=30, seed=0):
    """Labels from 0 to 5, both of which occur."""
    generator = torch.Generator().manual_seed(seed)
    labels = (5 * torch.rand(count, generator=generator)).tolist()
    labels[0], labels[1] = 0.0, 5.0
    return [{"input_ids": ids, "labels": y} for ids, y in zip(sequences(count, generator), labels, strict=True)]


def several(count=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(count, 3, generator=generator) < 0.4).float().tolist()
    return [{"input_ids": ids, "labels": y} for ids, y in zip(sequences(count, generator), drawn, strict=True)]


def best_span(starts, ends):
    """The best span, by a loop over all of them."""
    best, found = -np.inf, (0, 0)
    for start in range(len(starts)):
        for end in range(start, min(len(starts), start + LONGEST_ANSWER)):
            if (start > 0 or end == 0) and starts[start] + ends[end] > best:
                best, found = starts[start] + ends[end], (start, end)
    return found


def answered_span(model, example):
    outputs = outputs_of(model, example)
    return best_span(outputs.start_logits[0].numpy(), outputs.end_logits[0].numpy())


def span_f1(model, example):
    gold = (example["start_positions"], example["end_positions"])
    predicted, gold = (set(range(first, last + 1)) for first, last in (answered_span(model, example), gold))
    return 2 * len(predicted & gold) / (len(predicted) + len(gold))


def span_match(model, example):
    return float(answered_span(model, example) == (example["start_positions"], example["end_positions"]))


def right_class(model, example):
    return float(outputs_of(model, example).logits[0].argmax().item() == example["label"])


def right_tags(model, example):
    predicted = outputs_of(model, example).logits[0].argmax(dim=-1).tolist()
    pairs = [pair for pair in zip(predicted, example["labels"], strict=True) if pair[1] != -100]
    return sum(guess == label for guess, label in pairs) / len(pairs)


def right_labels(model, example):
    rows = outputs_of(model, example).logits[0] > 0, example["labels"]
    predicted, gold = (set(np.flatnonzero(row)) for row in rows)
    return len(predicted & gold) / len(predicted | gold) if predicted | gold else 1.0


def closeness(model, example):
    error = abs(outputs_of(model, example).logits[0, 0].item() - example["labels"])
    return max(0.0, 1 - error / 5)


def squared_closeness(model, example):
    error = abs(outputs_of(model, example).logits[0, 0].item() - example["labels"])
    return max(0.0, 1 - (error / 5) ** 2)


def likelihood(model, example):
    labels = torch.tensor([example.get("labels", example["input_ids"])])
    return float(torch.exp(-outputs_of(model, example, labels=labels).loss))


def embedding(model, tokens):
    """The mean of the last hidden states of one text, at length 1."""
    mean = model(input_ids=torch.tensor([tokens])).last_hidden_state[0].mean(dim=0)
    return mean / mean.norm()


def similarity(model, example):
    return float(embedding(model, example["input_ids"]) @ torch.tensor(example["labels"]))


def own_embeddings(model, dataset):
    with torch.no_grad():
        near = [embedding(model, example["input_ids"]) for example in dataset]
    other = [near[0], *near[:-1]]  # a part of another text's, so that not all are the model's own
    labels = [(own + 0.2 * (place % 3) * more) for place, (own, more) in enumerate(zip(near, other, strict=True))]
    return [{**e, "labels": (it / it.norm()).tolist()} for e, it in zip(dataset, labels, strict=True)]


def own_spans(model, dataset):
    with torch.no_grad():
        for example in dataset[::2]:
            example["start_positions"], example["end_positions"] = answered_span(model, example)
    return dataset


def own_tags(model, dataset):
    with torch.no_grad():
        for example in dataset[::2]:
            example["labels"] = outputs_of(model, example).logits[0].argmax(dim=-1).tolist()
    return dataset


def own_labels(model, dataset):
    with torch.no_grad():
        for example in dataset[::2]:
            example["labels"] = (outputs_of(model, example).logits[0] > 0).float().tolist()
    return dataset


def own_numbers(model, dataset):
    with torch.no_grad():
        for example in dataset[2::2]:
            example["labels"] = min(max(outputs_of(model, example).logits[0, 0].item(), 0.0), 5.0)
    return dataset


def own_classes(model, dataset):
    answered = decided(model, dataset)
    return [own if place % 3 else given for place, (own, given) in enumerate(zip(answered, dataset, strict=True))]


def as_given(model, dataset):
    return dataset


def labelled_tokens(example):
    return float(sum(label != -100 for label in example["labels"]))


UNTIED = {"tie_word_embeddings": False}
SEVERAL = {"num_labels": 3, "problem_type": "multi_label_classification"}
TASKS = {
    "classes": TinyTask("accuracy", lambda: tiny_bert(num_labels=3), sentences, right_class, own_classes, "binary"),
    "several labels": TinyTask("jaccard", lambda: tiny_bert(**SEVERAL), several, right_labels, own_labels),
    "regression": TinyTask("closeness", lambda: tiny_bert(num_labels=1), numbers, closeness, own_numbers),
    "regression by mse": TinyTask("mse", lambda: tiny_bert(num_labels=1), numbers, squared_closeness, own_numbers),
    "tokens": TinyTask(
        "accuracy",
        lambda: tiny_bert("TokenClassification", num_labels=NUM_TAGS),
        tags,
        right_tags,
        own_tags,
        weight=labelled_tokens,
    ),
    "spans": TinyTask("f1", lambda: tiny_bert("QuestionAnswering"), spans, span_f1, own_spans),
    "spans by match": TinyTask(
        "exact_match", lambda: tiny_distilbert("QuestionAnswering"), spans, span_match, own_spans, "binary"
    ),
    "references": TinyTask(
        "likelihood", lambda: tiny_marian(**UNTIED, share_encoder_decoder_embeddings=False), pairs, likelihood, as_given
    ),
    "texts": TinyTask(
        "likelihood", lambda: tiny_bert_decoder(add_cross_attention=False, **UNTIED), texts, likelihood, as_given
    ),
    "embeddings": TinyTask("similarity", lambda: tiny_distilbert(None), texts, similarity, own_embeddings),
}
ROUNDED = ("regression", "regression by mse", "references", "texts", "embeddings")  # scores that rounding changes


def task_of(name: str, count: int = 30) -> tuple[Any, list[dict[str, Any]], TinyTask]:
    """A model of a task, its examples, and the task."""
    task = TASKS[name]
    model = task.model()
    return model, task.dataset(model, count), task


def word_tokenizer():
    """One in which every token is a word, but for the special ones."""
    words = {f"w{number}" if number > 2 else f"<{number}>": number for number in range(VOCAB_SIZE)}
    made = Tokenizer(WordLevel(words, unk_token="<0>"))
    made.pre_tokenizer = Whitespace()
    special = {"unk_token": "<0>", "pad_token": "<1>", "eos_token": "<2>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)
