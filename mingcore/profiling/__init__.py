"""Profiles a request by stage under torch.profiler: a table, and a Perfetto trace.

`profile` runs a request three times with one seed: a warm-up that counts the bytes of every op, an unprofiled run for
the real time, and a run under the profiler. For that long a copy of the model and the functions of `mingcore.ops` are
wrapped; the runtime has no hooks, so a request that is not profiled pays nothing.
"""

from .profiler import Profile, profile
from .stages import OTHER, STAGES
from .timeline import Stage

__all__ = ["OTHER", "STAGES", "Profile", "Stage", "profile"]
