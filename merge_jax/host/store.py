"""The key-value store of JAX's coordination service, which lives in the lead.

It has no public face: this is the one use of what JAX keeps private, as Orbax uses it.
"""

from typing import Any


class Store:
  """Bytes by key, `/` between parts; every method raises RuntimeError when the lead does not answer."""

  def __init__(self) -> None:
    from jax._src import distributed

    state = distributed.global_state
    self._client: Any = state.client
    self.index, self.count = state.process_id, state.num_processes

  def put(self, key: str, value: bytes, again: bool = False) -> None:
    """Sets a key; one that is there raises RuntimeError, unless `again`."""
    self._client.key_value_set_bytes(f"merge_jax/{key}", value, again)

  def get(self, key: str, seconds: float) -> bytes | None:
    """The value, as soon as it is there; None if it does not come in time."""
    try:
      return bytes(self._client.blocking_key_value_get_bytes(f"merge_jax/{key}", int(seconds * 1000)))
    except RuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
      return None

  def under(self, folder: str) -> dict[str, bytes]:
    """Values by the last part of their keys."""
    found = self._client.key_value_dir_get_bytes(f"merge_jax/{folder}/")
    return {key.rpartition("/")[2]: bytes(value) for key, value in found}

  def forget(self, key: str) -> None:
    """Removes a key."""
    self._client.key_value_delete(f"merge_jax/{key}")
