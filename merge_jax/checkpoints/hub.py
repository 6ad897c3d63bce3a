"""Models as users name them: a local path, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

from merge_jax import storage

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@(\S+))?")
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]
_UNWANTED = [*(f"*/{kind}" for kind in _WANTED if kind != "*.jinja"), "consolidated*"]
"""A repository is one checkpoint, with further chat templates in a folder; Mistral's hold theirs twice."""


def is_name(text: str) -> bool:
  """Whether a text may name a repository of the hub, and maybe a revision.

  >>> is_name("org/name@main"), is_name("union")
  (True, False)
  """
  return _REPOSITORY.fullmatch(text) is not None


def resolve(text: str | Path, revision: str | None = None) -> Path:
  """A path on a disk or an object store as it is, else the snapshot of a repository in the hub's cache.

  It is downloaded if need be. Cache (`HF_HOME`), offline mode (`HF_HUB_OFFLINE=1`) and tokens (`HF_TOKEN`,
  `hf auth login`) are those of `huggingface_hub`.

  Args:
    text: a path that exists, `org/name`, or `org/name@revision`; `~` is the user's home.
    revision: branch, tag or commit, if the text does not say it.

  Raises:
    FileNotFoundError: neither a path nor a repository that can be had.
    ValueError: two revisions, or one of a local path.

  >>> resolve("no-such-folder")
  Traceback (most recent call last):
  FileNotFoundError: no-such-folder: there is no such path, and a model of the hub is named org/name or ...
  """
  text = str(text)
  if not text:
    raise FileNotFoundError("The path of a model is empty; expected a folder, a file or org/name.")
  if (path := storage.path(text)).exists():
    if revision is not None:
      raise ValueError(f"{text}: is a local path, which has no revision {revision!r}; leave it out.")
    return path
  match = _REPOSITORY.fullmatch(text)
  if match is None:
    raise FileNotFoundError(
      f"{text}: there is no such path, and a model of the hub is named org/name or org/name@revision."
    )
  if match[2] is not None and revision is not None:
    raise ValueError(f"{text}: has a revision of its own beside {revision!r}; give one.")
  return _snapshot(text, match[1], match[2] or revision)


def _snapshot(text: str, repository: str, revision: str | None) -> Path:
  import huggingface_hub  # slow to import, and most models are local
  from huggingface_hub import errors

  try:
    return Path(
      huggingface_hub.snapshot_download(
        repository, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
      )
    )
  except errors.GatedRepoError:
    reason = (
      "the hub lets only users in who were granted access: ask for it on its page, then `hf auth login`"
    )
  except errors.RepositoryNotFoundError:
    reason = "the hub does not have it, or hides it: check its name, or `hf auth login`"
  except errors.RevisionNotFoundError:
    reason = f"the hub's repository has no revision {revision!r}"
  except errors.LocalEntryNotFoundError:
    reason = "it is not whole in the hub's cache, and the hub cannot be reached (offline mode, or no network)"
  except Exception as error:  # of names, disks and networks: many kinds
    reason = f"the hub's library cannot get it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
  raise FileNotFoundError(f"{text}: is not a local path, and {reason}.")
