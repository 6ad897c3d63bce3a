"""The key-value store of JAX's coordination service, which lives in the lead.

It has no public face: this is the one use of what JAX keeps private, as Orbax uses it.
"""

from typing import Any


class Store:
  """Bytes by key, `/` between parts; every method raises RuntimeError when the lead does not answer."""

  def __init__(self) -> None:
    from jax._src import distributed

    self._state: Any = distributed.global_state
    self._held: dict[str, Any] = {}
    self._client: Any = self._state.client
    self.index, self.count = self._state.process_id, self._state.num_processes

  def hide(self) -> None:
    """Lets JAX believe from now on that this process is alone."""
    for name, alone in {"client": None, "service": None, "process_id": 0, "num_processes": 1}.items():
      self._held.setdefault(name, getattr(self._state, name))
      setattr(self._state, name, alone)

  def shut_down(self) -> None:
    """Leaves JAX's runtime, when all processes do."""
    import jax

    for name, value in self._held.items():
      setattr(self._state, name, value)
    jax.distributed.shutdown()

  def put(self, key: str, value: bytes, again: bool = False) -> None:
    """Sets a key; one that is there raises RuntimeError, unless `again`."""
    self._client.key_value_set_bytes(f"merge_jax/{key}", value, again)

  def get(self, key: str, seconds: float) -> bytes | None:
    """The value, as soon as it is there; None if it does not come in time. 0 seconds do not wait."""
    try:
      if not seconds:  # a deadline that is short may pass before the answer comes
        return bytes(self._client.key_value_try_get_bytes(f"merge_jax/{key}"))
      return bytes(self._client.blocking_key_value_get_bytes(f"merge_jax/{key}", int(seconds * 1000)))
    except RuntimeError as error:
      if not any(code in str(error) for code in ("DEADLINE_EXCEEDED", "NOT_FOUND")):
        raise
      return None

  def under(self, folder: str) -> dict[str, bytes]:
    """Values by the last part of their keys."""
    found = self._client.key_value_dir_get_bytes(f"merge_jax/{folder}/")
    return {key.rpartition("/")[2]: bytes(value) for key, value in found}

  def forget(self, key: str) -> None:
    """Removes a key."""
    self._client.key_value_delete(f"merge_jax/{key}")
