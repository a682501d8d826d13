"""Attention sinks, massive activations and compression valleys, measured on any TransformerLens model."""

from mcr_lens.hookpoints import HookDidNotFireError as HookDidNotFireError
from mcr_lens.hookpoints import MissingHookPointError as MissingHookPointError
from mcr_lens.hookpoints import PatternNotComputedError as PatternNotComputedError
from mcr_lens.interventions import zero_ablation as zero_ablation
from mcr_lens.interventions import zero_bos_mlp as zero_bos_mlp
from mcr_lens.measure import PromptWarning as PromptWarning
from mcr_lens.measure import measure as measure
from mcr_lens.metrics import UnknownMetricError as UnknownMetricError
from mcr_lens.metrics import get_metric as get_metric
from mcr_lens.metrics import list_metrics as list_metrics
from mcr_lens.metrics import metric as metric
from mcr_lens.models import ModelLoadError as ModelLoadError
from mcr_lens.models import load_model as load_model
from mcr_lens.observe import NonFiniteActivationError as NonFiniteActivationError
from mcr_lens.observe import ObservationWarning as ObservationWarning
from mcr_lens.observe import Observer as Observer
from mcr_lens.observe import observe as observe
from mcr_lens.plots import plot_profile as plot_profile
from mcr_lens.presets import preset as preset
from mcr_lens.provenance import ProcessedWeightsWarning as ProcessedWeightsWarning
from mcr_lens.report import write_report as write_report
from mcr_lens.results import ResultSchemaError as ResultSchemaError
from mcr_lens.results import load as load
from mcr_lens.results import merge as merge
from mcr_lens.results import save as save
from mcr_lens.results import tidy as tidy
from mcr_lens.summaries import ShortPromptWarning as ShortPromptWarning
from mcr_lens.summaries import colsum_rate as colsum_rate
from mcr_lens.summaries import layer_sink_identity as layer_sink_identity
from mcr_lens.summaries import massive_activation_strength as massive_activation_strength
from mcr_lens.summaries import massive_activations as massive_activations
from mcr_lens.summaries import massive_layer as massive_layer
from mcr_lens.summaries import mlp_write_share as mlp_write_share
from mcr_lens.summaries import normalized_entropy as normalized_entropy
from mcr_lens.summaries import sink_identity as sink_identity
from mcr_lens.summaries import sink_rate as sink_rate

__version__ = "0.1.0"
