"""Prompts as a model reads them: after solved examples, or as messages of a chat."""

from merge_jax.evals.tasks import Task
from merge_jax.evals.tokens import Tokens


def prompts(task: Task, tokens: Tokens) -> list[list[int]]:
  """Token ids of a task's prompts, in order.

  Raises:
    ValueError: messages for a tokenizer without a chat template, or that it refuses.
  """
  options, texts = task.options, [example.prompt for example in task.examples]
  if not options.chat:
    before = "".join(shot.prompt + shot.target + options.separator for shot in options.shots)
    return tokens.prompts([before + text for text in texts])
  first = [("system", options.system)] if options.system else []
  for shot in options.shots:
    first += [("user", shot.prompt), ("assistant", shot.target)]
  return tokens.prompts([tokens.chat([*first, ("user", text)]) for text in texts], special=False)
