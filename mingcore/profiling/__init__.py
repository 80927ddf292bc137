"""Where a request's time goes, by stage: under torch.profiler, as a table and as a Perfetto trace.

`profile` runs a request three times with one seed: once to warm up and to count every op's bytes,
once as it is, for its real time, and once under the profiler. The stages are wrapped around a copy
of the model and around `mingcore.ops`, for as long as that takes; the runtime knows nothing of it,
so a request that is not profiled pays nothing, not even a branch.
"""

from .profiler import Profile, profile
from .stages import OTHER, STAGES
from .timeline import Stage

__all__ = ["OTHER", "STAGES", "Profile", "Stage", "profile"]
