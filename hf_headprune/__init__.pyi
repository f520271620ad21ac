"""The public names, for type checkers. Written by `python -m tools.stubs` from `__init__.py`."""

from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForMultipleChoice,
    AlbertForPreTraining,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
    AlbertModel,
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
    CamembertConfig,
    CamembertForCausalLM,
    CamembertForMaskedLM,
    CamembertForMultipleChoice,
    CamembertForQuestionAnswering,
    CamembertForSequenceClassification,
    CamembertForTokenClassification,
    CamembertModel,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForMultipleChoice,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DebertaV2Model,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
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
    EuroBertConfig,
    EuroBertForMaskedLM,
    EuroBertForSequenceClassification,
    EuroBertForTokenClassification,
    EuroBertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Model,
    MarianConfig,
    MarianForCausalLM,
    MarianModel,
    MarianMTModel,
    MBartConfig,
    MBartForCausalLM,
    MBartForConditionalGeneration,
    MBartForQuestionAnswering,
    MBartForSequenceClassification,
    MBartModel,
    MistralConfig,
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetForMultipleChoice,
    MPNetForQuestionAnswering,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    MPNetModel,
    MT5Config,
    MT5EncoderModel,
    MT5ForConditionalGeneration,
    MT5ForQuestionAnswering,
    MT5ForSequenceClassification,
    MT5ForTokenClassification,
    MT5Model,
    NomicBertConfig,
    NomicBertForMaskedLM,
    NomicBertForSequenceClassification,
    NomicBertForTokenClassification,
    NomicBertModel,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo2ForSequenceClassification,
    Olmo2Model,
    PegasusConfig,
    PegasusForCausalLM,
    PegasusForConditionalGeneration,
    PegasusModel,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3ForSequenceClassification,
    Phi3ForTokenClassification,
    Phi3Model,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Qwen3Model,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5ForTokenClassification,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
    WhisperModel,
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
from hf_headprune.guarantee.neighbours import nearest_neighbours as nearest_neighbours
from hf_headprune.guarantee.power import PowerAssumptions as PowerAssumptions
from hf_headprune.guarantee.power import describe_power as describe_power
from hf_headprune.guarantee.power import detectable_drop as detectable_drop
from hf_headprune.guarantee.power import examples_needed as examples_needed
from hf_headprune.guarantee.power import power_of as power_of
from hf_headprune.guarantee.scored import CertificationData as CertificationData
from hf_headprune.guarantee.sequence import AlphaLedger as AlphaLedger
from hf_headprune.guarantee.splits import SplitSettings as SplitSettings
from hf_headprune.guarantee.splits import three_way_split as three_way_split
from hf_headprune.guarantee.verify import verify_certificate as verify_certificate
from hf_headprune.latency import LatencySettings as LatencySettings
from hf_headprune.latency import measure_latency as measure_latency
from hf_headprune.learn.distillation.settings import Distillation as Distillation
from hf_headprune.learn.distillation.settings import DistillationTuning as DistillationTuning
from hf_headprune.learn.gates.settings import GateTuning as GateTuning
from hf_headprune.learn.gates.settings import SubsetGates as SubsetGates
from hf_headprune.learn.movement.settings import BlockMovement as BlockMovement
from hf_headprune.learn.movement.settings import MovementTuning as MovementTuning
from hf_headprune.masking import masked as masked
from hf_headprune.pipeline import PruningLadder as PruningLadder
from hf_headprune.pipeline import PruningResult as PruningResult
from hf_headprune.pipeline import plan_for_budget as plan_for_budget
from hf_headprune.pipeline import plan_ladder as plan_ladder
from hf_headprune.pipeline import search_plan as search_plan
from hf_headprune.plan import PruningPlan as PruningPlan
from hf_headprune.plan import RefittedPlan as RefittedPlan
from hf_headprune.publish.onnx import export_onnx as export_onnx
from hf_headprune.publish.openvino import export_openvino as export_openvino
from hf_headprune.publish.report import PruningReport as PruningReport
from hf_headprune.refit.settings import SecondOrder as SecondOrder
from hf_headprune.refit.settings import SecondOrderTuning as SecondOrderTuning
from hf_headprune.search.settings import AStarSearch as AStarSearch
from hf_headprune.search.settings import SearchTuning as SearchTuning
from hf_headprune.shrink.config import PrunableConfig
from hf_headprune.shrink.export import export_model as export_model
from hf_headprune.shrink.latency_table import measure_latency_table as measure_latency_table
from hf_headprune.shrink.migration import migrate_checkpoint as migrate_checkpoint
from hf_headprune.shrink.prunable import PrunableModel
from hf_headprune.shrink.prunable import register_prunable as register_prunable
from hf_headprune.shrink.surgery import prune_model_ as prune_model_
from hf_headprune.shrink.vocabulary import prune_vocabulary_ as prune_vocabulary_
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
    "DistillationTuning",
    "GateTuning",
    "HeadPruneCallback",
    "HeadPruneError",
    "LatencySettings",
    "Metric",
    "Monitor",
    "MovementTuning",
    "PowerAssumptions",
    "PrunableAlbertConfig",
    "PrunableAlbertForMaskedLM",
    "PrunableAlbertForMultipleChoice",
    "PrunableAlbertForPreTraining",
    "PrunableAlbertForQuestionAnswering",
    "PrunableAlbertForSequenceClassification",
    "PrunableAlbertForTokenClassification",
    "PrunableAlbertModel",
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
    "PrunableCLIPConfig",
    "PrunableCLIPForImageClassification",
    "PrunableCLIPModel",
    "PrunableCLIPTextConfig",
    "PrunableCLIPTextModel",
    "PrunableCLIPVisionConfig",
    "PrunableCLIPVisionModel",
    "PrunableCamembertConfig",
    "PrunableCamembertForCausalLM",
    "PrunableCamembertForMaskedLM",
    "PrunableCamembertForMultipleChoice",
    "PrunableCamembertForQuestionAnswering",
    "PrunableCamembertForSequenceClassification",
    "PrunableCamembertForTokenClassification",
    "PrunableCamembertModel",
    "PrunableDebertaV2Config",
    "PrunableDebertaV2ForMaskedLM",
    "PrunableDebertaV2ForMultipleChoice",
    "PrunableDebertaV2ForQuestionAnswering",
    "PrunableDebertaV2ForSequenceClassification",
    "PrunableDebertaV2ForTokenClassification",
    "PrunableDebertaV2Model",
    "PrunableDeiTConfig",
    "PrunableDeiTForImageClassification",
    "PrunableDeiTForImageClassificationWithTeacher",
    "PrunableDeiTForMaskedImageModeling",
    "PrunableDeiTModel",
    "PrunableDinov2Backbone",
    "PrunableDinov2Config",
    "PrunableDinov2ForImageClassification",
    "PrunableDinov2Model",
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
    "PrunableEuroBertConfig",
    "PrunableEuroBertForMaskedLM",
    "PrunableEuroBertForSequenceClassification",
    "PrunableEuroBertForTokenClassification",
    "PrunableEuroBertModel",
    "PrunableGPT2Config",
    "PrunableGPT2ForQuestionAnswering",
    "PrunableGPT2ForSequenceClassification",
    "PrunableGPT2ForTokenClassification",
    "PrunableGPT2LMHeadModel",
    "PrunableGPT2Model",
    "PrunableGPTNeoXConfig",
    "PrunableGPTNeoXForCausalLM",
    "PrunableGPTNeoXForQuestionAnswering",
    "PrunableGPTNeoXForSequenceClassification",
    "PrunableGPTNeoXForTokenClassification",
    "PrunableGPTNeoXModel",
    "PrunableGemma3ForCausalLM",
    "PrunableGemma3TextConfig",
    "PrunableGemma3TextForSequenceClassification",
    "PrunableGemma3TextModel",
    "PrunableLlamaConfig",
    "PrunableLlamaForCausalLM",
    "PrunableLlamaForQuestionAnswering",
    "PrunableLlamaForSequenceClassification",
    "PrunableLlamaForTokenClassification",
    "PrunableLlamaModel",
    "PrunableM2M100Config",
    "PrunableM2M100ForConditionalGeneration",
    "PrunableM2M100Model",
    "PrunableMBartConfig",
    "PrunableMBartForCausalLM",
    "PrunableMBartForConditionalGeneration",
    "PrunableMBartForQuestionAnswering",
    "PrunableMBartForSequenceClassification",
    "PrunableMBartModel",
    "PrunableMPNetConfig",
    "PrunableMPNetForMaskedLM",
    "PrunableMPNetForMultipleChoice",
    "PrunableMPNetForQuestionAnswering",
    "PrunableMPNetForSequenceClassification",
    "PrunableMPNetForTokenClassification",
    "PrunableMPNetModel",
    "PrunableMT5Config",
    "PrunableMT5EncoderModel",
    "PrunableMT5ForConditionalGeneration",
    "PrunableMT5ForQuestionAnswering",
    "PrunableMT5ForSequenceClassification",
    "PrunableMT5ForTokenClassification",
    "PrunableMT5Model",
    "PrunableMarianConfig",
    "PrunableMarianForCausalLM",
    "PrunableMarianMTModel",
    "PrunableMarianModel",
    "PrunableMistralConfig",
    "PrunableMistralForCausalLM",
    "PrunableMistralForQuestionAnswering",
    "PrunableMistralForSequenceClassification",
    "PrunableMistralForTokenClassification",
    "PrunableMistralModel",
    "PrunableModernBertConfig",
    "PrunableModernBertForMaskedLM",
    "PrunableModernBertForMultipleChoice",
    "PrunableModernBertForQuestionAnswering",
    "PrunableModernBertForSequenceClassification",
    "PrunableModernBertForTokenClassification",
    "PrunableModernBertModel",
    "PrunableNomicBertConfig",
    "PrunableNomicBertForMaskedLM",
    "PrunableNomicBertForSequenceClassification",
    "PrunableNomicBertForTokenClassification",
    "PrunableNomicBertModel",
    "PrunableOlmo2Config",
    "PrunableOlmo2ForCausalLM",
    "PrunableOlmo2ForSequenceClassification",
    "PrunableOlmo2Model",
    "PrunablePegasusConfig",
    "PrunablePegasusForCausalLM",
    "PrunablePegasusForConditionalGeneration",
    "PrunablePegasusModel",
    "PrunablePhi3Config",
    "PrunablePhi3ForCausalLM",
    "PrunablePhi3ForSequenceClassification",
    "PrunablePhi3ForTokenClassification",
    "PrunablePhi3Model",
    "PrunableQwen2Config",
    "PrunableQwen2ForCausalLM",
    "PrunableQwen2ForQuestionAnswering",
    "PrunableQwen2ForSequenceClassification",
    "PrunableQwen2ForTokenClassification",
    "PrunableQwen2Model",
    "PrunableQwen3Config",
    "PrunableQwen3ForCausalLM",
    "PrunableQwen3ForQuestionAnswering",
    "PrunableQwen3ForSequenceClassification",
    "PrunableQwen3ForTokenClassification",
    "PrunableQwen3Model",
    "PrunableRobertaConfig",
    "PrunableRobertaForCausalLM",
    "PrunableRobertaForMaskedLM",
    "PrunableRobertaForMultipleChoice",
    "PrunableRobertaForQuestionAnswering",
    "PrunableRobertaForSequenceClassification",
    "PrunableRobertaForTokenClassification",
    "PrunableRobertaModel",
    "PrunableSiglipConfig",
    "PrunableSiglipForImageClassification",
    "PrunableSiglipModel",
    "PrunableSiglipTextConfig",
    "PrunableSiglipTextModel",
    "PrunableSiglipVisionConfig",
    "PrunableSiglipVisionModel",
    "PrunableSwinBackbone",
    "PrunableSwinConfig",
    "PrunableSwinForImageClassification",
    "PrunableSwinForMaskedImageModeling",
    "PrunableSwinModel",
    "PrunableT5Config",
    "PrunableT5EncoderModel",
    "PrunableT5ForConditionalGeneration",
    "PrunableT5ForQuestionAnswering",
    "PrunableT5ForSequenceClassification",
    "PrunableT5ForTokenClassification",
    "PrunableT5Model",
    "PrunableViTConfig",
    "PrunableViTForImageClassification",
    "PrunableViTForMaskedImageModeling",
    "PrunableViTModel",
    "PrunableWav2Vec2Config",
    "PrunableWav2Vec2ForAudioFrameClassification",
    "PrunableWav2Vec2ForCTC",
    "PrunableWav2Vec2ForPreTraining",
    "PrunableWav2Vec2ForSequenceClassification",
    "PrunableWav2Vec2ForXVector",
    "PrunableWav2Vec2Model",
    "PrunableWhisperConfig",
    "PrunableWhisperForAudioClassification",
    "PrunableWhisperForCausalLM",
    "PrunableWhisperForConditionalGeneration",
    "PrunableWhisperModel",
    "PrunableXLMRobertaConfig",
    "PrunableXLMRobertaForCausalLM",
    "PrunableXLMRobertaForMaskedLM",
    "PrunableXLMRobertaForMultipleChoice",
    "PrunableXLMRobertaForQuestionAnswering",
    "PrunableXLMRobertaForSequenceClassification",
    "PrunableXLMRobertaForTokenClassification",
    "PrunableXLMRobertaModel",
    "PruningLadder",
    "PruningPlan",
    "PruningReport",
    "PruningResult",
    "RefittedPlan",
    "SearchTuning",
    "SecondOrder",
    "SecondOrderTuning",
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
    "examples_needed",
    "export_model",
    "export_onnx",
    "export_openvino",
    "linear_density",
    "masked",
    "measure_latency",
    "measure_latency_table",
    "migrate_checkpoint",
    "nearest_neighbours",
    "plan_for_budget",
    "plan_ladder",
    "power_of",
    "prune_model_",
    "prune_vocabulary_",
    "register_prunable",
    "scores_of",
    "search_plan",
    "three_way_split",
    "verify_certificate",
]

class PrunableAlbertConfig(PrunableConfig, AlbertConfig): ...

class PrunableAlbertForMaskedLM(PrunableModel, AlbertForMaskedLM):
    config: PrunableAlbertConfig
    config_class: type[PrunableAlbertConfig]

class PrunableAlbertForMultipleChoice(PrunableModel, AlbertForMultipleChoice):
    config: PrunableAlbertConfig
    config_class: type[PrunableAlbertConfig]

class PrunableAlbertForPreTraining(PrunableModel, AlbertForPreTraining):
    config: PrunableAlbertConfig
    config_class: type[PrunableAlbertConfig]

class PrunableAlbertForQuestionAnswering(PrunableModel, AlbertForQuestionAnswering):
    config: PrunableAlbertConfig
    config_class: type[PrunableAlbertConfig]

class PrunableAlbertForSequenceClassification(PrunableModel, AlbertForSequenceClassification):
    config: PrunableAlbertConfig
    config_class: type[PrunableAlbertConfig]

class PrunableAlbertForTokenClassification(PrunableModel, AlbertForTokenClassification):
    config: PrunableAlbertConfig
    config_class: type[PrunableAlbertConfig]

class PrunableAlbertModel(PrunableModel, AlbertModel):
    config: PrunableAlbertConfig
    config_class: type[PrunableAlbertConfig]

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

class PrunableCLIPConfig(PrunableConfig, CLIPConfig): ...

class PrunableCLIPForImageClassification(PrunableModel, CLIPForImageClassification):
    config: PrunableCLIPConfig
    config_class: type[PrunableCLIPConfig]

class PrunableCLIPModel(PrunableModel, CLIPModel):
    config: PrunableCLIPConfig
    config_class: type[PrunableCLIPConfig]

class PrunableCLIPTextConfig(PrunableConfig, CLIPTextConfig): ...

class PrunableCLIPTextModel(PrunableModel, CLIPTextModel):
    config: PrunableCLIPTextConfig
    config_class: type[PrunableCLIPTextConfig]

class PrunableCLIPVisionConfig(PrunableConfig, CLIPVisionConfig): ...

class PrunableCLIPVisionModel(PrunableModel, CLIPVisionModel):
    config: PrunableCLIPVisionConfig
    config_class: type[PrunableCLIPVisionConfig]

class PrunableCamembertConfig(PrunableConfig, CamembertConfig): ...

class PrunableCamembertForCausalLM(PrunableModel, CamembertForCausalLM):
    config: PrunableCamembertConfig
    config_class: type[PrunableCamembertConfig]

class PrunableCamembertForMaskedLM(PrunableModel, CamembertForMaskedLM):
    config: PrunableCamembertConfig
    config_class: type[PrunableCamembertConfig]

class PrunableCamembertForMultipleChoice(PrunableModel, CamembertForMultipleChoice):
    config: PrunableCamembertConfig
    config_class: type[PrunableCamembertConfig]

class PrunableCamembertForQuestionAnswering(PrunableModel, CamembertForQuestionAnswering):
    config: PrunableCamembertConfig
    config_class: type[PrunableCamembertConfig]

class PrunableCamembertForSequenceClassification(PrunableModel, CamembertForSequenceClassification):
    config: PrunableCamembertConfig
    config_class: type[PrunableCamembertConfig]

class PrunableCamembertForTokenClassification(PrunableModel, CamembertForTokenClassification):
    config: PrunableCamembertConfig
    config_class: type[PrunableCamembertConfig]

class PrunableCamembertModel(PrunableModel, CamembertModel):
    config: PrunableCamembertConfig
    config_class: type[PrunableCamembertConfig]

class PrunableDebertaV2Config(PrunableConfig, DebertaV2Config): ...

class PrunableDebertaV2ForMaskedLM(PrunableModel, DebertaV2ForMaskedLM):
    config: PrunableDebertaV2Config
    config_class: type[PrunableDebertaV2Config]

class PrunableDebertaV2ForMultipleChoice(PrunableModel, DebertaV2ForMultipleChoice):
    config: PrunableDebertaV2Config
    config_class: type[PrunableDebertaV2Config]

class PrunableDebertaV2ForQuestionAnswering(PrunableModel, DebertaV2ForQuestionAnswering):
    config: PrunableDebertaV2Config
    config_class: type[PrunableDebertaV2Config]

class PrunableDebertaV2ForSequenceClassification(PrunableModel, DebertaV2ForSequenceClassification):
    config: PrunableDebertaV2Config
    config_class: type[PrunableDebertaV2Config]

class PrunableDebertaV2ForTokenClassification(PrunableModel, DebertaV2ForTokenClassification):
    config: PrunableDebertaV2Config
    config_class: type[PrunableDebertaV2Config]

class PrunableDebertaV2Model(PrunableModel, DebertaV2Model):
    config: PrunableDebertaV2Config
    config_class: type[PrunableDebertaV2Config]

class PrunableDeiTConfig(PrunableConfig, DeiTConfig): ...

class PrunableDeiTForImageClassification(PrunableModel, DeiTForImageClassification):
    config: PrunableDeiTConfig
    config_class: type[PrunableDeiTConfig]

class PrunableDeiTForImageClassificationWithTeacher(PrunableModel, DeiTForImageClassificationWithTeacher):
    config: PrunableDeiTConfig
    config_class: type[PrunableDeiTConfig]

class PrunableDeiTForMaskedImageModeling(PrunableModel, DeiTForMaskedImageModeling):
    config: PrunableDeiTConfig
    config_class: type[PrunableDeiTConfig]

class PrunableDeiTModel(PrunableModel, DeiTModel):
    config: PrunableDeiTConfig
    config_class: type[PrunableDeiTConfig]

class PrunableDinov2Backbone(PrunableModel, Dinov2Backbone):
    config: PrunableDinov2Config
    config_class: type[PrunableDinov2Config]

class PrunableDinov2Config(PrunableConfig, Dinov2Config): ...

class PrunableDinov2ForImageClassification(PrunableModel, Dinov2ForImageClassification):
    config: PrunableDinov2Config
    config_class: type[PrunableDinov2Config]

class PrunableDinov2Model(PrunableModel, Dinov2Model):
    config: PrunableDinov2Config
    config_class: type[PrunableDinov2Config]

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

class PrunableEuroBertConfig(PrunableConfig, EuroBertConfig): ...

class PrunableEuroBertForMaskedLM(PrunableModel, EuroBertForMaskedLM):
    config: PrunableEuroBertConfig
    config_class: type[PrunableEuroBertConfig]

class PrunableEuroBertForSequenceClassification(PrunableModel, EuroBertForSequenceClassification):
    config: PrunableEuroBertConfig
    config_class: type[PrunableEuroBertConfig]

class PrunableEuroBertForTokenClassification(PrunableModel, EuroBertForTokenClassification):
    config: PrunableEuroBertConfig
    config_class: type[PrunableEuroBertConfig]

class PrunableEuroBertModel(PrunableModel, EuroBertModel):
    config: PrunableEuroBertConfig
    config_class: type[PrunableEuroBertConfig]

class PrunableGPT2Config(PrunableConfig, GPT2Config): ...

class PrunableGPT2ForQuestionAnswering(PrunableModel, GPT2ForQuestionAnswering):
    config: PrunableGPT2Config
    config_class: type[PrunableGPT2Config]

class PrunableGPT2ForSequenceClassification(PrunableModel, GPT2ForSequenceClassification):
    config: PrunableGPT2Config
    config_class: type[PrunableGPT2Config]

class PrunableGPT2ForTokenClassification(PrunableModel, GPT2ForTokenClassification):
    config: PrunableGPT2Config
    config_class: type[PrunableGPT2Config]

class PrunableGPT2LMHeadModel(PrunableModel, GPT2LMHeadModel):
    config: PrunableGPT2Config
    config_class: type[PrunableGPT2Config]

class PrunableGPT2Model(PrunableModel, GPT2Model):
    config: PrunableGPT2Config
    config_class: type[PrunableGPT2Config]

class PrunableGPTNeoXConfig(PrunableConfig, GPTNeoXConfig): ...

class PrunableGPTNeoXForCausalLM(PrunableModel, GPTNeoXForCausalLM):
    config: PrunableGPTNeoXConfig
    config_class: type[PrunableGPTNeoXConfig]

class PrunableGPTNeoXForQuestionAnswering(PrunableModel, GPTNeoXForQuestionAnswering):
    config: PrunableGPTNeoXConfig
    config_class: type[PrunableGPTNeoXConfig]

class PrunableGPTNeoXForSequenceClassification(PrunableModel, GPTNeoXForSequenceClassification):
    config: PrunableGPTNeoXConfig
    config_class: type[PrunableGPTNeoXConfig]

class PrunableGPTNeoXForTokenClassification(PrunableModel, GPTNeoXForTokenClassification):
    config: PrunableGPTNeoXConfig
    config_class: type[PrunableGPTNeoXConfig]

class PrunableGPTNeoXModel(PrunableModel, GPTNeoXModel):
    config: PrunableGPTNeoXConfig
    config_class: type[PrunableGPTNeoXConfig]

class PrunableGemma3ForCausalLM(PrunableModel, Gemma3ForCausalLM):
    config: PrunableGemma3TextConfig
    config_class: type[PrunableGemma3TextConfig]

class PrunableGemma3TextConfig(PrunableConfig, Gemma3TextConfig): ...

class PrunableGemma3TextForSequenceClassification(PrunableModel, Gemma3TextForSequenceClassification):
    config: PrunableGemma3TextConfig
    config_class: type[PrunableGemma3TextConfig]

class PrunableGemma3TextModel(PrunableModel, Gemma3TextModel):
    config: PrunableGemma3TextConfig
    config_class: type[PrunableGemma3TextConfig]

class PrunableLlamaConfig(PrunableConfig, LlamaConfig): ...

class PrunableLlamaForCausalLM(PrunableModel, LlamaForCausalLM):
    config: PrunableLlamaConfig
    config_class: type[PrunableLlamaConfig]

class PrunableLlamaForQuestionAnswering(PrunableModel, LlamaForQuestionAnswering):
    config: PrunableLlamaConfig
    config_class: type[PrunableLlamaConfig]

class PrunableLlamaForSequenceClassification(PrunableModel, LlamaForSequenceClassification):
    config: PrunableLlamaConfig
    config_class: type[PrunableLlamaConfig]

class PrunableLlamaForTokenClassification(PrunableModel, LlamaForTokenClassification):
    config: PrunableLlamaConfig
    config_class: type[PrunableLlamaConfig]

class PrunableLlamaModel(PrunableModel, LlamaModel):
    config: PrunableLlamaConfig
    config_class: type[PrunableLlamaConfig]

class PrunableM2M100Config(PrunableConfig, M2M100Config): ...

class PrunableM2M100ForConditionalGeneration(PrunableModel, M2M100ForConditionalGeneration):
    config: PrunableM2M100Config
    config_class: type[PrunableM2M100Config]

class PrunableM2M100Model(PrunableModel, M2M100Model):
    config: PrunableM2M100Config
    config_class: type[PrunableM2M100Config]

class PrunableMBartConfig(PrunableConfig, MBartConfig): ...

class PrunableMBartForCausalLM(PrunableModel, MBartForCausalLM):
    config: PrunableMBartConfig
    config_class: type[PrunableMBartConfig]

class PrunableMBartForConditionalGeneration(PrunableModel, MBartForConditionalGeneration):
    config: PrunableMBartConfig
    config_class: type[PrunableMBartConfig]

class PrunableMBartForQuestionAnswering(PrunableModel, MBartForQuestionAnswering):
    config: PrunableMBartConfig
    config_class: type[PrunableMBartConfig]

class PrunableMBartForSequenceClassification(PrunableModel, MBartForSequenceClassification):
    config: PrunableMBartConfig
    config_class: type[PrunableMBartConfig]

class PrunableMBartModel(PrunableModel, MBartModel):
    config: PrunableMBartConfig
    config_class: type[PrunableMBartConfig]

class PrunableMPNetConfig(PrunableConfig, MPNetConfig): ...

class PrunableMPNetForMaskedLM(PrunableModel, MPNetForMaskedLM):
    config: PrunableMPNetConfig
    config_class: type[PrunableMPNetConfig]

class PrunableMPNetForMultipleChoice(PrunableModel, MPNetForMultipleChoice):
    config: PrunableMPNetConfig
    config_class: type[PrunableMPNetConfig]

class PrunableMPNetForQuestionAnswering(PrunableModel, MPNetForQuestionAnswering):
    config: PrunableMPNetConfig
    config_class: type[PrunableMPNetConfig]

class PrunableMPNetForSequenceClassification(PrunableModel, MPNetForSequenceClassification):
    config: PrunableMPNetConfig
    config_class: type[PrunableMPNetConfig]

class PrunableMPNetForTokenClassification(PrunableModel, MPNetForTokenClassification):
    config: PrunableMPNetConfig
    config_class: type[PrunableMPNetConfig]

class PrunableMPNetModel(PrunableModel, MPNetModel):
    config: PrunableMPNetConfig
    config_class: type[PrunableMPNetConfig]

class PrunableMT5Config(PrunableConfig, MT5Config): ...

class PrunableMT5EncoderModel(PrunableModel, MT5EncoderModel):
    config: PrunableMT5Config
    config_class: type[PrunableMT5Config]

class PrunableMT5ForConditionalGeneration(PrunableModel, MT5ForConditionalGeneration):
    config: PrunableMT5Config
    config_class: type[PrunableMT5Config]

class PrunableMT5ForQuestionAnswering(PrunableModel, MT5ForQuestionAnswering):
    config: PrunableMT5Config
    config_class: type[PrunableMT5Config]

class PrunableMT5ForSequenceClassification(PrunableModel, MT5ForSequenceClassification):
    config: PrunableMT5Config
    config_class: type[PrunableMT5Config]

class PrunableMT5ForTokenClassification(PrunableModel, MT5ForTokenClassification):
    config: PrunableMT5Config
    config_class: type[PrunableMT5Config]

class PrunableMT5Model(PrunableModel, MT5Model):
    config: PrunableMT5Config
    config_class: type[PrunableMT5Config]

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

class PrunableMistralConfig(PrunableConfig, MistralConfig): ...

class PrunableMistralForCausalLM(PrunableModel, MistralForCausalLM):
    config: PrunableMistralConfig
    config_class: type[PrunableMistralConfig]

class PrunableMistralForQuestionAnswering(PrunableModel, MistralForQuestionAnswering):
    config: PrunableMistralConfig
    config_class: type[PrunableMistralConfig]

class PrunableMistralForSequenceClassification(PrunableModel, MistralForSequenceClassification):
    config: PrunableMistralConfig
    config_class: type[PrunableMistralConfig]

class PrunableMistralForTokenClassification(PrunableModel, MistralForTokenClassification):
    config: PrunableMistralConfig
    config_class: type[PrunableMistralConfig]

class PrunableMistralModel(PrunableModel, MistralModel):
    config: PrunableMistralConfig
    config_class: type[PrunableMistralConfig]

class PrunableModernBertConfig(PrunableConfig, ModernBertConfig): ...

class PrunableModernBertForMaskedLM(PrunableModel, ModernBertForMaskedLM):
    config: PrunableModernBertConfig
    config_class: type[PrunableModernBertConfig]

class PrunableModernBertForMultipleChoice(PrunableModel, ModernBertForMultipleChoice):
    config: PrunableModernBertConfig
    config_class: type[PrunableModernBertConfig]

class PrunableModernBertForQuestionAnswering(PrunableModel, ModernBertForQuestionAnswering):
    config: PrunableModernBertConfig
    config_class: type[PrunableModernBertConfig]

class PrunableModernBertForSequenceClassification(PrunableModel, ModernBertForSequenceClassification):
    config: PrunableModernBertConfig
    config_class: type[PrunableModernBertConfig]

class PrunableModernBertForTokenClassification(PrunableModel, ModernBertForTokenClassification):
    config: PrunableModernBertConfig
    config_class: type[PrunableModernBertConfig]

class PrunableModernBertModel(PrunableModel, ModernBertModel):
    config: PrunableModernBertConfig
    config_class: type[PrunableModernBertConfig]

class PrunableNomicBertConfig(PrunableConfig, NomicBertConfig): ...

class PrunableNomicBertForMaskedLM(PrunableModel, NomicBertForMaskedLM):
    config: PrunableNomicBertConfig
    config_class: type[PrunableNomicBertConfig]

class PrunableNomicBertForSequenceClassification(PrunableModel, NomicBertForSequenceClassification):
    config: PrunableNomicBertConfig
    config_class: type[PrunableNomicBertConfig]

class PrunableNomicBertForTokenClassification(PrunableModel, NomicBertForTokenClassification):
    config: PrunableNomicBertConfig
    config_class: type[PrunableNomicBertConfig]

class PrunableNomicBertModel(PrunableModel, NomicBertModel):
    config: PrunableNomicBertConfig
    config_class: type[PrunableNomicBertConfig]

class PrunableOlmo2Config(PrunableConfig, Olmo2Config): ...

class PrunableOlmo2ForCausalLM(PrunableModel, Olmo2ForCausalLM):
    config: PrunableOlmo2Config
    config_class: type[PrunableOlmo2Config]

class PrunableOlmo2ForSequenceClassification(PrunableModel, Olmo2ForSequenceClassification):
    config: PrunableOlmo2Config
    config_class: type[PrunableOlmo2Config]

class PrunableOlmo2Model(PrunableModel, Olmo2Model):
    config: PrunableOlmo2Config
    config_class: type[PrunableOlmo2Config]

class PrunablePegasusConfig(PrunableConfig, PegasusConfig): ...

class PrunablePegasusForCausalLM(PrunableModel, PegasusForCausalLM):
    config: PrunablePegasusConfig
    config_class: type[PrunablePegasusConfig]

class PrunablePegasusForConditionalGeneration(PrunableModel, PegasusForConditionalGeneration):
    config: PrunablePegasusConfig
    config_class: type[PrunablePegasusConfig]

class PrunablePegasusModel(PrunableModel, PegasusModel):
    config: PrunablePegasusConfig
    config_class: type[PrunablePegasusConfig]

class PrunablePhi3Config(PrunableConfig, Phi3Config): ...

class PrunablePhi3ForCausalLM(PrunableModel, Phi3ForCausalLM):
    config: PrunablePhi3Config
    config_class: type[PrunablePhi3Config]

class PrunablePhi3ForSequenceClassification(PrunableModel, Phi3ForSequenceClassification):
    config: PrunablePhi3Config
    config_class: type[PrunablePhi3Config]

class PrunablePhi3ForTokenClassification(PrunableModel, Phi3ForTokenClassification):
    config: PrunablePhi3Config
    config_class: type[PrunablePhi3Config]

class PrunablePhi3Model(PrunableModel, Phi3Model):
    config: PrunablePhi3Config
    config_class: type[PrunablePhi3Config]

class PrunableQwen2Config(PrunableConfig, Qwen2Config): ...

class PrunableQwen2ForCausalLM(PrunableModel, Qwen2ForCausalLM):
    config: PrunableQwen2Config
    config_class: type[PrunableQwen2Config]

class PrunableQwen2ForQuestionAnswering(PrunableModel, Qwen2ForQuestionAnswering):
    config: PrunableQwen2Config
    config_class: type[PrunableQwen2Config]

class PrunableQwen2ForSequenceClassification(PrunableModel, Qwen2ForSequenceClassification):
    config: PrunableQwen2Config
    config_class: type[PrunableQwen2Config]

class PrunableQwen2ForTokenClassification(PrunableModel, Qwen2ForTokenClassification):
    config: PrunableQwen2Config
    config_class: type[PrunableQwen2Config]

class PrunableQwen2Model(PrunableModel, Qwen2Model):
    config: PrunableQwen2Config
    config_class: type[PrunableQwen2Config]

class PrunableQwen3Config(PrunableConfig, Qwen3Config): ...

class PrunableQwen3ForCausalLM(PrunableModel, Qwen3ForCausalLM):
    config: PrunableQwen3Config
    config_class: type[PrunableQwen3Config]

class PrunableQwen3ForQuestionAnswering(PrunableModel, Qwen3ForQuestionAnswering):
    config: PrunableQwen3Config
    config_class: type[PrunableQwen3Config]

class PrunableQwen3ForSequenceClassification(PrunableModel, Qwen3ForSequenceClassification):
    config: PrunableQwen3Config
    config_class: type[PrunableQwen3Config]

class PrunableQwen3ForTokenClassification(PrunableModel, Qwen3ForTokenClassification):
    config: PrunableQwen3Config
    config_class: type[PrunableQwen3Config]

class PrunableQwen3Model(PrunableModel, Qwen3Model):
    config: PrunableQwen3Config
    config_class: type[PrunableQwen3Config]

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

class PrunableSiglipConfig(PrunableConfig, SiglipConfig): ...

class PrunableSiglipForImageClassification(PrunableModel, SiglipForImageClassification):
    config: PrunableSiglipConfig
    config_class: type[PrunableSiglipConfig]

class PrunableSiglipModel(PrunableModel, SiglipModel):
    config: PrunableSiglipConfig
    config_class: type[PrunableSiglipConfig]

class PrunableSiglipTextConfig(PrunableConfig, SiglipTextConfig): ...

class PrunableSiglipTextModel(PrunableModel, SiglipTextModel):
    config: PrunableSiglipTextConfig
    config_class: type[PrunableSiglipTextConfig]

class PrunableSiglipVisionConfig(PrunableConfig, SiglipVisionConfig): ...

class PrunableSiglipVisionModel(PrunableModel, SiglipVisionModel):
    config: PrunableSiglipVisionConfig
    config_class: type[PrunableSiglipVisionConfig]

class PrunableSwinBackbone(PrunableModel, SwinBackbone):
    config: PrunableSwinConfig
    config_class: type[PrunableSwinConfig]

class PrunableSwinConfig(PrunableConfig, SwinConfig): ...

class PrunableSwinForImageClassification(PrunableModel, SwinForImageClassification):
    config: PrunableSwinConfig
    config_class: type[PrunableSwinConfig]

class PrunableSwinForMaskedImageModeling(PrunableModel, SwinForMaskedImageModeling):
    config: PrunableSwinConfig
    config_class: type[PrunableSwinConfig]

class PrunableSwinModel(PrunableModel, SwinModel):
    config: PrunableSwinConfig
    config_class: type[PrunableSwinConfig]

class PrunableT5Config(PrunableConfig, T5Config): ...

class PrunableT5EncoderModel(PrunableModel, T5EncoderModel):
    config: PrunableT5Config
    config_class: type[PrunableT5Config]

class PrunableT5ForConditionalGeneration(PrunableModel, T5ForConditionalGeneration):
    config: PrunableT5Config
    config_class: type[PrunableT5Config]

class PrunableT5ForQuestionAnswering(PrunableModel, T5ForQuestionAnswering):
    config: PrunableT5Config
    config_class: type[PrunableT5Config]

class PrunableT5ForSequenceClassification(PrunableModel, T5ForSequenceClassification):
    config: PrunableT5Config
    config_class: type[PrunableT5Config]

class PrunableT5ForTokenClassification(PrunableModel, T5ForTokenClassification):
    config: PrunableT5Config
    config_class: type[PrunableT5Config]

class PrunableT5Model(PrunableModel, T5Model):
    config: PrunableT5Config
    config_class: type[PrunableT5Config]

class PrunableViTConfig(PrunableConfig, ViTConfig): ...

class PrunableViTForImageClassification(PrunableModel, ViTForImageClassification):
    config: PrunableViTConfig
    config_class: type[PrunableViTConfig]

class PrunableViTForMaskedImageModeling(PrunableModel, ViTForMaskedImageModeling):
    config: PrunableViTConfig
    config_class: type[PrunableViTConfig]

class PrunableViTModel(PrunableModel, ViTModel):
    config: PrunableViTConfig
    config_class: type[PrunableViTConfig]

class PrunableWav2Vec2Config(PrunableConfig, Wav2Vec2Config): ...

class PrunableWav2Vec2ForAudioFrameClassification(PrunableModel, Wav2Vec2ForAudioFrameClassification):
    config: PrunableWav2Vec2Config
    config_class: type[PrunableWav2Vec2Config]

class PrunableWav2Vec2ForCTC(PrunableModel, Wav2Vec2ForCTC):
    config: PrunableWav2Vec2Config
    config_class: type[PrunableWav2Vec2Config]

class PrunableWav2Vec2ForPreTraining(PrunableModel, Wav2Vec2ForPreTraining):
    config: PrunableWav2Vec2Config
    config_class: type[PrunableWav2Vec2Config]

class PrunableWav2Vec2ForSequenceClassification(PrunableModel, Wav2Vec2ForSequenceClassification):
    config: PrunableWav2Vec2Config
    config_class: type[PrunableWav2Vec2Config]

class PrunableWav2Vec2ForXVector(PrunableModel, Wav2Vec2ForXVector):
    config: PrunableWav2Vec2Config
    config_class: type[PrunableWav2Vec2Config]

class PrunableWav2Vec2Model(PrunableModel, Wav2Vec2Model):
    config: PrunableWav2Vec2Config
    config_class: type[PrunableWav2Vec2Config]

class PrunableWhisperConfig(PrunableConfig, WhisperConfig): ...

class PrunableWhisperForAudioClassification(PrunableModel, WhisperForAudioClassification):
    config: PrunableWhisperConfig
    config_class: type[PrunableWhisperConfig]

class PrunableWhisperForCausalLM(PrunableModel, WhisperForCausalLM):
    config: PrunableWhisperConfig
    config_class: type[PrunableWhisperConfig]

class PrunableWhisperForConditionalGeneration(PrunableModel, WhisperForConditionalGeneration):
    config: PrunableWhisperConfig
    config_class: type[PrunableWhisperConfig]

class PrunableWhisperModel(PrunableModel, WhisperModel):
    config: PrunableWhisperConfig
    config_class: type[PrunableWhisperConfig]

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
