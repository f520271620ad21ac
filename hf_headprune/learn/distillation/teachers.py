"""Which teachers fit a student: refused before training, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_headprune.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

ONE_ROW_TASKS = ("SequenceClassification", "ImageClassification")  # one row of logits for each example
LABELLED_TASKS = (*ONE_ROW_TASKS, "TokenClassification", "QuestionAnswering", "MultipleChoice")
LANGUAGE_MODELLING = "language modelling"
SOFTMAX_TASKS = (None, "single_label_classification")
PADDING = 128  # embeddings are padded to multiples of at most this


def require_fitting_teacher(teacher: Any, student: Any, *, compares_hidden: bool) -> None:
    """Refuses a teacher whose outputs the student can't learn from.

    A tokenizer that differs while the size of its vocabulary does not can't be seen here.

    Args:
        teacher: Of the distillation.
        student: The model in training, not wrapped.
        compares_hidden: Whether hidden states are to be compared, too.

    Raises:
        InvalidSettingError: The teacher is the student or shares weights with it, has no task, or differs from it in
            task, labels, vocabulary (unless the teacher's is padded, and no logits of tokens are compared) or (for
            hidden states) hidden size.
    """
    shared = {id(parameter) for parameter in teacher.parameters()} & {id(p) for p in student.parameters()}
    if teacher is student or shared:
        raise InvalidSettingError(
            f"Distillation(teacher=...): the teacher {'is the student' if teacher is student else 'shares weights'} "
            "with the model in training, so it would change with every step. Load it a second time, or pass "
            "copy.deepcopy(model)."
        )
    differences = [*_task_differences(teacher, student), *_size_differences(teacher, student)]
    if compares_hidden:
        differences += _difference("hidden size", _hidden_size(teacher), _hidden_size(student))
    if differences:
        raise InvalidSettingError(
            f"Distillation(teacher={type(teacher).__name__}): it does not fit the student, a "
            f"{type(student).__name__}: {'; '.join(differences)}. Take a teacher that was trained for the same task, "
            "with the same labels and the same tokenizer."
        )


def has_softmax(config: Any) -> bool:
    """Tells whether a classifier's labels exclude each other, as far as it is known: its first labels may decide."""
    return getattr(config, "problem_type", None) in SOFTMAX_TASKS


def layer_pairs(teacher: Any, student: Any, layer_map: Mapping[int, int] | None) -> dict[str, dict[int, int]]:
    """Returns which hidden states are compared: name of the output -> student's layer -> teacher's layer.

    Without a map, layer i of S learns from layer (i + 1) * T // S - 1 of T (the first, where that is below zero).

    Raises:
        InvalidSettingError: The map names a layer that one of the models lacks.
    """
    taught, learning = _layer_counts(teacher), _layer_counts(student)
    if taught.keys() != learning.keys():
        raise InvalidSettingError(
            f"Distillation(alpha_hidden=...): the student returns {sorted(learning)} and the teacher {sorted(taught)}. "
            "Take a teacher of the same kind, or leave alpha_hidden at 0."
        )
    pairs = {}
    for name, count in learning.items():
        uniform = {i: max((i + 1) * taught[name] // count - 1, 0) for i in range(count)}
        pairs[name] = uniform if layer_map is None else dict(layer_map)
        if max(pairs[name]) >= count or max(pairs[name].values()) >= taught[name]:
            raise InvalidSettingError(
                f"Distillation(layer_map={layer_map}): the student has layers 0 to {count - 1} and the teacher 0 to "
                f"{taught[name] - 1} ({name}). Name only layers that they have."
            )
    return pairs


def _task_differences(teacher: Any, student: Any) -> list[str]:
    tasks = _task(teacher), _task(student)
    if None in tasks or tasks[0] != tasks[1]:
        named = ["none, it has no head" if task is None else task for task in tasks]
        return [f"the teacher's task is {named[0]}, the student's {named[1]}"]
    if tasks[0] not in LABELLED_TASKS:
        return []
    found = _difference("number of labels", teacher.config.num_labels, student.config.num_labels)
    excludes = student.config.num_labels > 1 and all(has_softmax(model.config) for model in (teacher, student))
    if tasks[1] in ONE_ROW_TASKS and not excludes:
        found.append("its labels exclude each other in no softmax (regression or several labels)")
    return found or _label_order_differences(teacher.config.id2label, student.config.id2label)


def _label_order_differences(teacher: Mapping[int, str], student: Mapping[int, str]) -> list[str]:
    taught, learning = ([str(names[i]).casefold() for i in sorted(names)] for names in (teacher, student))
    is_other_order = taught != learning and sorted(taught) == sorted(learning)
    return [f"the teacher's labels are {taught} and the student's {learning}, in another order"] * is_other_order


def _size_differences(teacher: Any, student: Any) -> list[str]:
    kinds = [bool(model.config.is_encoder_decoder) for model in (teacher, student)]
    words = ["an encoder-decoder" if kind else "one stack" for kind in kinds]
    sizes: list[Any] = [getattr(model.config, "vocab_size", None) for model in (teacher, student)]
    differences = _difference("architecture", *words)
    # In a padded vocabulary all token ids fit, which is enough where no logits of tokens are compared.
    is_padded = all(sizes) and sizes[0] in range(sizes[1], sizes[1] + PADDING)
    if not (is_padded and _task(student) in LABELLED_TASKS):
        differences += _difference("vocabulary size", *sizes)
    return differences


def _difference(what: str, teacher: Any, student: Any) -> list[str]:
    return [] if teacher == student else [f"the teacher's {what} is {teacher}, the student's {student}"]


def _task(model: Any) -> str | None:
    names = [kind.__name__ for kind in type(model).__mro__]  # a class of the user's own has any name
    for task in LABELLED_TASKS:
        if any(name.endswith(f"For{task}") for name in names):
            return task
    has_vocabulary = getattr(model, "get_output_embeddings", lambda: None)() is not None
    return LANGUAGE_MODELLING if has_vocabulary else None


def _hidden_size(model: Any) -> int:
    return model.config.hidden_size


def _layer_counts(model: Any) -> dict[str, int]:
    config = model.config
    if config.is_encoder_decoder:
        encoder = getattr(config, "encoder_layers", config.num_hidden_layers)  # T5 names both its counts otherwise
        decoder = config.decoder_layers if hasattr(config, "decoder_layers") else config.num_decoder_layers
        return {"encoder_hidden_states": encoder, "decoder_hidden_states": decoder}
    return {"hidden_states": config.num_hidden_layers}
