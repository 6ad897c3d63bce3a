"""Figures and one self-contained page, made from result files alone."""

from merge_jax.reports.page import Report as Report
from merge_jax.reports.page import make as make
from merge_jax.reports.text import console as console
from merge_jax.reports.text import headline as headline
