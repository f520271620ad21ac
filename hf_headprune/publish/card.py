"""The model card: what the report of a run says, for those who find the model on the Hub."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from jinja2 import Environment, StrictUndefined

from hf_headprune._model_card import TAGS, THIS_MODEL, card_of, without_code
from hf_headprune.errors import InvalidSettingError
from hf_headprune.publish.plots import captions

if TYPE_CHECKING:
    from hf_headprune.publish.measurements import MetricChange
    from hf_headprune.publish.report import PruningReport

PLAIN, ONNX = "plain", "onnx/model.onnx"  # where other forms of a model lie beside it
TEMPLATE = Path(__file__).with_name("model_card.md")
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
}


def model_card(
    report: PruningReport,
    *,
    class_name: str,
    auto_class: str = "AutoModel",
    base_model: str | None = None,
    dataset: str | None = None,
    folder: Path | None = None,
) -> str:
    """Returns the card of a pruned model: metadata and Markdown, every number of which is in the report.

    Args:
        report: Of the run.
        class_name: Of the pruned model, which says what pipeline it serves.
        auto_class: That loads it.
        base_model: Name on the Hub of the model that was fine-tuned or pruned; what is no such name is left out.
        dataset: Name on the Hub of the data set of the metric; that of the report when left out. Without one, no metric
            is among the metadata.
        folder: Of the model, if it is saved: the card says how to load the other forms of it that lie there.
    """
    dataset = dataset or report.recipe.dataset or None
    base = base_model if base_model is not None and is_hub_name(base_model) else None
    pipeline = next((kind for end, kind in PIPELINES.items() if class_name.endswith(end)), None)
    title = f"{base.rpartition('/')[2] if base else report.plan.model_type}, pruned"
    about: dict[str, Any] = {"library_name": "transformers", "tags": list(TAGS)}
    optional = {"base_model": base, "pipeline_tag": pipeline, "datasets": None if dataset is None else [dataset]}
    about |= {name: value for name, value in optional.items() if value is not None}
    if report.unseen is not None and dataset is not None:
        about |= {"model_name": title, "eval_results": [_result(report.unseen, dataset, pipeline)]}
    environment = Environment(undefined=StrictUndefined)
    section = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        version=metadata.version("hf-headprune"),
        base="the dense model" if base is None else f"[{base}](https://huggingface.co/{base})",
        headline=report.headline(),
        how=report.how(),
        rows=[[cell.strip() for cell in row] for row in report.rows()],
        layers="\n".join(report.layers()),
        pictures=captions(report.plan, report.frontier, report.training),
        notes=report.notes(),
        certified=bool(report.certificate) and report.unseen is not None,
        auto_class=auto_class,
        has_plain=folder is not None and (folder / PLAIN / "config.json").exists(),
        has_onnx=folder is not None and (folder / ONNX).exists(),
        plain=PLAIN,
        onnx=ONNX,
        this_model=THIS_MODEL,
    )
    has_code = folder is None or any(folder.glob("modeling_prunable_*.py"))
    return card_of(about, title, section if has_code else without_code(section))


def eval_results(report: PruningReport, *, dataset: str, task: str) -> str:
    """Returns the metric on unseen examples as a file of `.eval_results/` of a repository: YAML.

    Args:
        report: Of the run.
        dataset: Name on the Hub of the benchmark.
        task: Its name within the benchmark.

    Raises:
        InvalidSettingError: The report has no metric on unseen examples.
    """
    found = report.unseen
    if found is None:
        raise InvalidSettingError(
            "eval_results: there is no metric on unseen examples in the report. Pass certify= to what prunes."
        )
    count = "" if found.num_examples is None else f" on {found.num_examples:,} examples"
    entry = EvalResultEntry(dataset, task, found.after, notes=f"{found.name}{count}; pruned by hf_headprune")
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)


def write_eval_results(report: PruningReport, folder: Path, *, dataset: str, task: str) -> Path:
    """Writes the metric on unseen examples where the Hub's leaderboards read it; see `eval_results`."""
    file = folder / ".eval_results" / f"{dataset.rpartition('/')[2]}.yaml"
    text = eval_results(report, dataset=dataset, task=task)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def is_hub_name(name: str) -> bool:
    """Tells whether a text can be the name of a model on the Hub, and is no folder of this machine."""
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)) and not name.startswith(".") and not Path(name).exists()


def _result(found: MetricChange, dataset: str, pipeline: str | None) -> EvalResult:
    """Returns the metric on unseen examples as the Hub reads it."""
    return EvalResult(
        task_type=pipeline or "other",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=found.name,
        metric_name=found.name,
        metric_value=found.after,
    )
