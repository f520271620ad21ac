"""The public names, for type checkers. Written by `python -m tools.stubs` from `__init__.py`."""

from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForCausalLM,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
    MarianConfig,
    MarianForCausalLM,
    MarianModel,
    MarianMTModel,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForCausalLM,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

from hf_headprune import errors as errors
from hf_headprune.anatomy import anatomy_of as anatomy_of
from hf_headprune.budgets import linear_density as linear_density
from hf_headprune.callback import HeadPruneCallback as HeadPruneCallback
from hf_headprune.cost import Cost as Cost
from hf_headprune.cost import cost_of as cost_of
from hf_headprune.errors import HeadPruneError as HeadPruneError
from hf_headprune.guarantee.certificate import Certificate as Certificate
from hf_headprune.guarantee.certify import certify as certify
from hf_headprune.guarantee.certify import certify_path as certify_path
from hf_headprune.guarantee.claim import Metric as Metric
from hf_headprune.guarantee.disagreements import disagreements as disagreements
from hf_headprune.guarantee.monitor import Monitor as Monitor
from hf_headprune.guarantee.power import PowerAssumptions as PowerAssumptions
from hf_headprune.guarantee.power import describe_power as describe_power
from hf_headprune.guarantee.power import detectable_drop as detectable_drop
from hf_headprune.guarantee.power import examples_needed as examples_needed
from hf_headprune.guarantee.power import power_of as power_of
from hf_headprune.guarantee.scored import CertificationData as CertificationData
from hf_headprune.guarantee.sequence import AlphaLedger as AlphaLedger
from hf_headprune.guarantee.sequence import evenly_spaced as evenly_spaced
from hf_headprune.guarantee.splits import SplitSettings as SplitSettings
from hf_headprune.guarantee.splits import three_way_split as three_way_split
from hf_headprune.guarantee.verify import verify_certificate as verify_certificate
from hf_headprune.latency import LatencySettings as LatencySettings
from hf_headprune.latency import measure_latency as measure_latency
from hf_headprune.learn.distillation.settings import Distillation as Distillation
from hf_headprune.learn.gates.settings import SubsetGates as SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement as BlockMovement
from hf_headprune.masking import masked as masked
from hf_headprune.pipeline import PruningResult as PruningResult
from hf_headprune.pipeline import plan_for_budget as plan_for_budget
from hf_headprune.pipeline import search_plan as search_plan
from hf_headprune.plan import PruningPlan as PruningPlan
from hf_headprune.plan import RefittedPlan as RefittedPlan
from hf_headprune.refit.plans_between import plans_between as plans_between
from hf_headprune.refit.settings import SecondOrder as SecondOrder
from hf_headprune.search.settings import AStarSearch as AStarSearch
from hf_headprune.shrink.config import PrunableConfig
from hf_headprune.shrink.latency_table import measure_latency_table as measure_latency_table
from hf_headprune.shrink.prunable import PrunableModel
from hf_headprune.shrink.surgery import prune_model_ as prune_model_
from hf_headprune.tasks.batches import Batching as Batching
from hf_headprune.tasks.scores import scores_of as scores_of

__version__: str
__all__ = [
    "AStarSearch",
    "AlphaLedger",
    "Batching",
    "BlockMovement",
    "Certificate",
    "CertificationData",
    "Cost",
    "Distillation",
    "HeadPruneCallback",
    "HeadPruneError",
    "LatencySettings",
    "Metric",
    "Monitor",
    "PowerAssumptions",
    "PrunableBartConfig",
    "PrunableBartForCausalLM",
    "PrunableBartForConditionalGeneration",
    "PrunableBartForQuestionAnswering",
    "PrunableBartForSequenceClassification",
    "PrunableBartModel",
    "PrunableBertConfig",
    "PrunableBertForMaskedLM",
    "PrunableBertForMultipleChoice",
    "PrunableBertForNextSentencePrediction",
    "PrunableBertForPreTraining",
    "PrunableBertForQuestionAnswering",
    "PrunableBertForSequenceClassification",
    "PrunableBertForTokenClassification",
    "PrunableBertLMHeadModel",
    "PrunableBertModel",
    "PrunableDistilBertConfig",
    "PrunableDistilBertForMaskedLM",
    "PrunableDistilBertForMultipleChoice",
    "PrunableDistilBertForQuestionAnswering",
    "PrunableDistilBertForSequenceClassification",
    "PrunableDistilBertForTokenClassification",
    "PrunableDistilBertModel",
    "PrunableElectraConfig",
    "PrunableElectraForCausalLM",
    "PrunableElectraForMaskedLM",
    "PrunableElectraForMultipleChoice",
    "PrunableElectraForPreTraining",
    "PrunableElectraForQuestionAnswering",
    "PrunableElectraForSequenceClassification",
    "PrunableElectraForTokenClassification",
    "PrunableElectraModel",
    "PrunableMarianConfig",
    "PrunableMarianForCausalLM",
    "PrunableMarianMTModel",
    "PrunableMarianModel",
    "PrunableRobertaConfig",
    "PrunableRobertaForCausalLM",
    "PrunableRobertaForMaskedLM",
    "PrunableRobertaForMultipleChoice",
    "PrunableRobertaForQuestionAnswering",
    "PrunableRobertaForSequenceClassification",
    "PrunableRobertaForTokenClassification",
    "PrunableRobertaModel",
    "PrunableXLMRobertaConfig",
    "PrunableXLMRobertaForCausalLM",
    "PrunableXLMRobertaForMaskedLM",
    "PrunableXLMRobertaForMultipleChoice",
    "PrunableXLMRobertaForQuestionAnswering",
    "PrunableXLMRobertaForSequenceClassification",
    "PrunableXLMRobertaForTokenClassification",
    "PrunableXLMRobertaModel",
    "PruningPlan",
    "PruningResult",
    "RefittedPlan",
    "SecondOrder",
    "SplitSettings",
    "SubsetGates",
    "anatomy_of",
    "certify",
    "certify_path",
    "cost_of",
    "describe_power",
    "detectable_drop",
    "disagreements",
    "errors",
    "evenly_spaced",
    "examples_needed",
    "linear_density",
    "masked",
    "measure_latency",
    "measure_latency_table",
    "plan_for_budget",
    "plans_between",
    "power_of",
    "prune_model_",
    "scores_of",
    "search_plan",
    "three_way_split",
    "verify_certificate",
]

class PrunableBartConfig(PrunableConfig, BartConfig): ...

class PrunableBartForCausalLM(PrunableModel, BartForCausalLM):
    config: PrunableBartConfig
    config_class: type[PrunableBartConfig]

class PrunableBartForConditionalGeneration(PrunableModel, BartForConditionalGeneration):
    config: PrunableBartConfig
    config_class: type[PrunableBartConfig]

class PrunableBartForQuestionAnswering(PrunableModel, BartForQuestionAnswering):
    config: PrunableBartConfig
    config_class: type[PrunableBartConfig]

class PrunableBartForSequenceClassification(PrunableModel, BartForSequenceClassification):
    config: PrunableBartConfig
    config_class: type[PrunableBartConfig]

class PrunableBartModel(PrunableModel, BartModel):
    config: PrunableBartConfig
    config_class: type[PrunableBartConfig]

class PrunableBertConfig(PrunableConfig, BertConfig): ...

class PrunableBertForMaskedLM(PrunableModel, BertForMaskedLM):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableBertForMultipleChoice(PrunableModel, BertForMultipleChoice):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableBertForNextSentencePrediction(PrunableModel, BertForNextSentencePrediction):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableBertForPreTraining(PrunableModel, BertForPreTraining):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableBertForQuestionAnswering(PrunableModel, BertForQuestionAnswering):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableBertForSequenceClassification(PrunableModel, BertForSequenceClassification):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableBertForTokenClassification(PrunableModel, BertForTokenClassification):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableBertLMHeadModel(PrunableModel, BertLMHeadModel):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableBertModel(PrunableModel, BertModel):
    config: PrunableBertConfig
    config_class: type[PrunableBertConfig]

class PrunableDistilBertConfig(PrunableConfig, DistilBertConfig): ...

class PrunableDistilBertForMaskedLM(PrunableModel, DistilBertForMaskedLM):
    config: PrunableDistilBertConfig
    config_class: type[PrunableDistilBertConfig]

class PrunableDistilBertForMultipleChoice(PrunableModel, DistilBertForMultipleChoice):
    config: PrunableDistilBertConfig
    config_class: type[PrunableDistilBertConfig]

class PrunableDistilBertForQuestionAnswering(PrunableModel, DistilBertForQuestionAnswering):
    config: PrunableDistilBertConfig
    config_class: type[PrunableDistilBertConfig]

class PrunableDistilBertForSequenceClassification(PrunableModel, DistilBertForSequenceClassification):
    config: PrunableDistilBertConfig
    config_class: type[PrunableDistilBertConfig]

class PrunableDistilBertForTokenClassification(PrunableModel, DistilBertForTokenClassification):
    config: PrunableDistilBertConfig
    config_class: type[PrunableDistilBertConfig]

class PrunableDistilBertModel(PrunableModel, DistilBertModel):
    config: PrunableDistilBertConfig
    config_class: type[PrunableDistilBertConfig]

class PrunableElectraConfig(PrunableConfig, ElectraConfig): ...

class PrunableElectraForCausalLM(PrunableModel, ElectraForCausalLM):
    config: PrunableElectraConfig
    config_class: type[PrunableElectraConfig]

class PrunableElectraForMaskedLM(PrunableModel, ElectraForMaskedLM):
    config: PrunableElectraConfig
    config_class: type[PrunableElectraConfig]

class PrunableElectraForMultipleChoice(PrunableModel, ElectraForMultipleChoice):
    config: PrunableElectraConfig
    config_class: type[PrunableElectraConfig]

class PrunableElectraForPreTraining(PrunableModel, ElectraForPreTraining):
    config: PrunableElectraConfig
    config_class: type[PrunableElectraConfig]

class PrunableElectraForQuestionAnswering(PrunableModel, ElectraForQuestionAnswering):
    config: PrunableElectraConfig
    config_class: type[PrunableElectraConfig]

class PrunableElectraForSequenceClassification(PrunableModel, ElectraForSequenceClassification):
    config: PrunableElectraConfig
    config_class: type[PrunableElectraConfig]

class PrunableElectraForTokenClassification(PrunableModel, ElectraForTokenClassification):
    config: PrunableElectraConfig
    config_class: type[PrunableElectraConfig]

class PrunableElectraModel(PrunableModel, ElectraModel):
    config: PrunableElectraConfig
    config_class: type[PrunableElectraConfig]

class PrunableMarianConfig(PrunableConfig, MarianConfig): ...

class PrunableMarianForCausalLM(PrunableModel, MarianForCausalLM):
    config: PrunableMarianConfig
    config_class: type[PrunableMarianConfig]

class PrunableMarianMTModel(PrunableModel, MarianMTModel):
    config: PrunableMarianConfig
    config_class: type[PrunableMarianConfig]

class PrunableMarianModel(PrunableModel, MarianModel):
    config: PrunableMarianConfig
    config_class: type[PrunableMarianConfig]

class PrunableRobertaConfig(PrunableConfig, RobertaConfig): ...

class PrunableRobertaForCausalLM(PrunableModel, RobertaForCausalLM):
    config: PrunableRobertaConfig
    config_class: type[PrunableRobertaConfig]

class PrunableRobertaForMaskedLM(PrunableModel, RobertaForMaskedLM):
    config: PrunableRobertaConfig
    config_class: type[PrunableRobertaConfig]

class PrunableRobertaForMultipleChoice(PrunableModel, RobertaForMultipleChoice):
    config: PrunableRobertaConfig
    config_class: type[PrunableRobertaConfig]

class PrunableRobertaForQuestionAnswering(PrunableModel, RobertaForQuestionAnswering):
    config: PrunableRobertaConfig
    config_class: type[PrunableRobertaConfig]

class PrunableRobertaForSequenceClassification(PrunableModel, RobertaForSequenceClassification):
    config: PrunableRobertaConfig
    config_class: type[PrunableRobertaConfig]

class PrunableRobertaForTokenClassification(PrunableModel, RobertaForTokenClassification):
    config: PrunableRobertaConfig
    config_class: type[PrunableRobertaConfig]

class PrunableRobertaModel(PrunableModel, RobertaModel):
    config: PrunableRobertaConfig
    config_class: type[PrunableRobertaConfig]

class PrunableXLMRobertaConfig(PrunableConfig, XLMRobertaConfig): ...

class PrunableXLMRobertaForCausalLM(PrunableModel, XLMRobertaForCausalLM):
    config: PrunableXLMRobertaConfig
    config_class: type[PrunableXLMRobertaConfig]

class PrunableXLMRobertaForMaskedLM(PrunableModel, XLMRobertaForMaskedLM):
    config: PrunableXLMRobertaConfig
    config_class: type[PrunableXLMRobertaConfig]

class PrunableXLMRobertaForMultipleChoice(PrunableModel, XLMRobertaForMultipleChoice):
    config: PrunableXLMRobertaConfig
    config_class: type[PrunableXLMRobertaConfig]

class PrunableXLMRobertaForQuestionAnswering(PrunableModel, XLMRobertaForQuestionAnswering):
    config: PrunableXLMRobertaConfig
    config_class: type[PrunableXLMRobertaConfig]

class PrunableXLMRobertaForSequenceClassification(PrunableModel, XLMRobertaForSequenceClassification):
    config: PrunableXLMRobertaConfig
    config_class: type[PrunableXLMRobertaConfig]

class PrunableXLMRobertaForTokenClassification(PrunableModel, XLMRobertaForTokenClassification):
    config: PrunableXLMRobertaConfig
    config_class: type[PrunableXLMRobertaConfig]

class PrunableXLMRobertaModel(PrunableModel, XLMRobertaModel):
    config: PrunableXLMRobertaConfig
    config_class: type[PrunableXLMRobertaConfig]
