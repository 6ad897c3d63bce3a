"""Decoders whose parameters are named and laid out as their Hugging Face tensors are."""

from merge_jax.models import stacking as stacking
from merge_jax.models.comparison import differences as differences
from merge_jax.models.config import DecoderConfig as DecoderConfig
from merge_jax.models.families import parse as parse
from merge_jax.models.functional import Model as Model
from merge_jax.models.functional import build as build
from merge_jax.models.functional import check as check
from merge_jax.models.presets import preset as preset
from merge_jax.models.stacking import stack as stack
from merge_jax.models.stacking import stack_specs as stack_specs
from merge_jax.models.stacking import unstack as unstack
