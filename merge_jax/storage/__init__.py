"""Files that are whole or absent, chained journal lines, locks, and what is known of inputs.

On local disks, and on object stores (`remote.py`): what differs between them is decided here alone.
"""

from merge_jax.storage.behind import WriteBehind as WriteBehind
from merge_jax.storage.folders import PARTIAL as PARTIAL
from merge_jax.storage.folders import destination as destination
from merge_jax.storage.folders import disk_destination as disk_destination
from merge_jax.storage.folders import interrupted as interrupted
from merge_jax.storage.folders import is_filled as is_filled
from merge_jax.storage.folders import new_file as new_file
from merge_jax.storage.folders import new_folder as new_folder
from merge_jax.storage.folders import refuse_filled as refuse_filled
from merge_jax.storage.folders import refuse_taken as refuse_taken
from merge_jax.storage.folders import refuse_unwritable as refuse_unwritable
from merge_jax.storage.folders import set_aside as set_aside
from merge_jax.storage.folders import sync as sync
from merge_jax.storage.folders import sync_tree as sync_tree
from merge_jax.storage.folders import write_json as write_json
from merge_jax.storage.folders import write_text as write_text
from merge_jax.storage.inputs import copy_file as copy_file
from merge_jax.storage.inputs import digest as digest
from merge_jax.storage.inputs import fingerprint as fingerprint
from merge_jax.storage.inputs import lexists as lexists
from merge_jax.storage.inputs import read_bytes as read_bytes
from merge_jax.storage.inputs import read_json as read_json
from merge_jax.storage.inputs import read_ranges as read_ranges
from merge_jax.storage.inputs import refuse_around as refuse_around
from merge_jax.storage.inputs import refuse_inside as refuse_inside
from merge_jax.storage.inputs import refuse_special as refuse_special
from merge_jax.storage.lines import Lines as Lines
from merge_jax.storage.lines import each_line as each_line
from merge_jax.storage.lines import has_lines as has_lines
from merge_jax.storage.lines import read_lines as read_lines
from merge_jax.storage.lines import remove_lines as remove_lines
from merge_jax.storage.locks import Locked as Locked
from merge_jax.storage.locks import held as held
from merge_jax.storage.locks import locked as locked
from merge_jax.storage.locks import refuse_locked as refuse_locked
from merge_jax.storage.places import deliver as deliver
from merge_jax.storage.places import names as names
from merge_jax.storage.places import refuse_unfinished as refuse_unfinished
from merge_jax.storage.places import remove_tree as remove_tree
from merge_jax.storage.places import scratch as scratch
from merge_jax.storage.places import workroom as workroom
from merge_jax.storage.remote import Remote as Remote
from merge_jax.storage.remote import path as path
from merge_jax.storage.remote import side_by_side as side_by_side
from merge_jax.storage.space import available_memory as available_memory
from merge_jax.storage.space import cores as cores
from merge_jax.storage.space import gib as gib
from merge_jax.storage.space import require_space as require_space
from merge_jax.storage.space import writing as writing
