"""Before anything imports torch: one thread. The models here are tiny, and threads that wait for
each other on a busy machine cost more than they bring. Hypothesis tries the same examples in
every run, so that a run that fails fails again."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
