"""Before anything imports torch: one thread. The models here are tiny, and threads that wait for
each other on a busy machine cost more than they bring."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
