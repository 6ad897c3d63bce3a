"""EleutherAI's lm-eval, both ways: it evaluates our models, and its tasks lead a search. Extra `harness`.

`model.py` is a language model for lm-eval, `run.py` an evaluation of its own, and `tasks.py` its documents as
tasks like any other. Only these import `lm_eval`, when they are used.
"""

PREFIX = "lm_eval:"
"""How the name of one of its tasks begins among task files."""


def is_named(spec: str) -> bool:
  """Whether a spec names a task of lm-eval."""
  return spec.startswith(PREFIX)
