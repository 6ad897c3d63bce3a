"""The processes of one job: who leads, what the lead says, waiting for all. The only place that knows them.

`start` joins JAX's multi-controller runtime. Messages go over the key-value store of its coordination
service, not over devices: they need none, and whoever waits hears that another process failed or is gone.
Every process makes the same calls of `broadcast`, `gather` and `barrier` in the same order. With one process,
and without `start`, all are trivial.

A process that fails tells the others why (`reporting`); each of them raises that sentence the next time that
it looks (`stopping`, or any wait here). One that is killed is missed by the lead after `heartbeat` seconds.
Who does not look for `GRACE` seconds more, deep in a program that waits for a dead peer, is ended. The store
dies with the lead: JAX's own client then ends the others at once, with a message of its own and SIGABRT.
"""

from merge_jax.host.ending import ask_to_stop as ask_to_stop
from merge_jax.host.ending import cause as cause
from merge_jax.host.ending import leave as leave
from merge_jax.host.ending import reporting as reporting
from merge_jax.host.ending import stopping as stopping
from merge_jax.host.job import GRACE as GRACE
from merge_jax.host.job import Ended as Ended
from merge_jax.host.job import leave_now as leave_now
from merge_jax.host.starting import HEARTBEAT as HEARTBEAT
from merge_jax.host.starting import count as count
from merge_jax.host.starting import end as end
from merge_jax.host.starting import index as index
from merge_jax.host.starting import is_lead as is_lead
from merge_jax.host.starting import keep_devices_apart as keep_devices_apart
from merge_jax.host.starting import neighbours as neighbours
from merge_jax.host.starting import start as start
from merge_jax.host.talking import barrier as barrier
from merge_jax.host.talking import broadcast as broadcast
from merge_jax.host.talking import commands as commands
from merge_jax.host.talking import gather as gather
from merge_jax.host.talking import leading as leading
from merge_jax.host.talking import refuse_another as refuse_another
