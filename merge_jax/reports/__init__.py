"""Figures and one self-contained page, made from result files alone."""

from merge_jax.reports.page import Report as Report
from merge_jax.reports.page import make as make
from merge_jax.reports.study_data import is_study as is_study
from merge_jax.reports.study_page import make as make_study
from merge_jax.reports.study_page import write as write_study
from merge_jax.reports.study_text import console as study_console
from merge_jax.reports.text import console as console
from merge_jax.reports.text import headline as headline
from merge_jax.reports.text import trust as trust

__all__ = [
  "Report", "console", "headline", "is_study", "make", "make_study", "study_console", "trust",
  "write_study",
]  # fmt: skip
