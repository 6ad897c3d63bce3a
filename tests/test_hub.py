"""Models by the names that users give them, against a cache laid out as the hub's; no network."""

import hashlib

import numpy as np
import pytest

from merge_jax import checkpoints
from merge_jax.checkpoints import hub

MAIN, TAGGED = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
  import huggingface_hub.constants

  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.chdir(tmp_path)
  repository = tmp_path / "hub" / "models--acme--Tiny-1.5"
  for commit, ref in ((MAIN, "main"), (TAGGED, "v2")):
    checkpoints.write(tmp_path / "made", {"w": np.full(3, ord(commit[0]), np.float32)})
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
      folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    content = (tmp_path / "made" / "model.safetensors").read_bytes()
    blob = blobs / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    (snapshot / "config.json").write_text("{}")
  return repository / "snapshots"


@pytest.mark.parametrize(
  ("text", "revision", "commit"),
  [
    ("acme/Tiny-1.5", None, MAIN),
    ("acme/Tiny-1.5", "main", MAIN),
    ("acme/Tiny-1.5@v2", None, TAGGED),
    ("acme/Tiny-1.5", "v2", TAGGED),
    (f"acme/Tiny-1.5@{TAGGED}", None, TAGGED),
  ],
)
def test_repositories_come_from_the_cache(cache, text, revision, commit):
  path = hub.resolve(text, revision)
  assert path == cache / commit
  opened = checkpoints.open(path)
  assert opened.read("w")[0] == ord(commit[0]) and opened.name == "acme/Tiny-1.5"


def test_a_home_of_nobody_is_named():
  with pytest.raises(ValueError, match="~nobody-of-this-name/m: there is no such user"):
    hub.resolve("~nobody-of-this-name/m")


def test_what_exists_is_local(cache, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("acme/Tiny-1.5", "acme/x@v2", "m"):
    (tmp_path / name).mkdir(parents=True)
    assert str(hub.resolve(name)) == name
  assert hub.resolve(tmp_path / "m") == hub.resolve("~/m") == tmp_path / "m"
  (tmp_path / "w.safetensors").write_bytes(b"")
  assert str(hub.resolve("w.safetensors")) == "w.safetensors"
  with pytest.raises(ValueError, match="m: is a local path, which has no revision 'v2'"):
    hub.resolve("m", "v2")


@pytest.mark.parametrize(
  ("text", "revision", "kind", "message"),
  [
    (
      "acme/other",
      None,
      FileNotFoundError,
      "is not a local path, and it is not whole in the hub's cache, and the hub",
    ),
    ("acme/Tiny-1.5@v3", None, FileNotFoundError, "it is not whole in the hub's cache"),
    ("acme/Tiny-1.5@v2", "main", ValueError, "has a revision of its own beside 'main'"),
    ("nothing", None, FileNotFoundError, "there is no such path, and a model of the hub is named org/name"),
    ("/nothing/at/all", None, FileNotFoundError, "there is no such path"),
    ("../a/b", None, FileNotFoundError, "there is no such path"),
    ("", None, FileNotFoundError, "The path of a model is empty"),
    ("acme/--x--", None, FileNotFoundError, "is not a local path, and"),
  ],
)
def test_errors_are_one_sentence(cache, text, revision, kind, message):
  with pytest.raises(kind, match=message) as raised:
    hub.resolve(text, revision)
  assert str(raised.value).startswith(text) and "\n" not in str(raised.value)


def test_an_unfinished_download_is_named(cache):
  (cache / MAIN / "model.safetensors").unlink()
  with pytest.raises(ValueError, match=r"neither a safetensors folder nor .*config.json"):
    checkpoints.open(hub.resolve("acme/Tiny-1.5"))
