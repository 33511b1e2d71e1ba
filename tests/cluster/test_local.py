"""A cluster on this machine alone, in a process of its own, which has not imported Ray."""

import os
import subprocess
import sys

CODE = """
import os
import signal
import sys
import psutil
from cluster.dying import double
import reusekit.search, reusekit.settings
from reusekit.cluster import Cluster

assert "ray" not in sys.modules
before = dict(os.environ)
handler = signal.getsignal(signal.SIGTERM)
with Cluster("local", workers=1) as cluster:
    assert list(cluster.map(double, [1, 2])) == [2, 4]
    assert signal.getsignal(signal.SIGTERM) is handler
    process = psutil.Process()
    found = [
        one.laddr.ip
        for each in [process, *process.children(recursive=True)]
        for one in each.net_connections()
        if one.status == psutil.CONN_LISTEN
    ]
    assert len(found) > 3, found
    assert {one.removeprefix("::ffff:") for one in found} == {"127.0.0.1"}, found
assert before == dict(os.environ)
with Cluster("local", workers=1) as cluster:  # again, with the token that Ray has read
    assert list(cluster.map(double, [3])) == [6]
assert before == dict(os.environ)
print("done", process.children(recursive=True))
"""


def test_it_listens_on_the_loopback_alone_and_leaves_nothing_behind():
    names = ("PATH", "HOME", "TF_NUM_INTRAOP_THREADS")
    known = {name: os.environ[name] for name in names if name in os.environ}
    environment = {**known, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "done []\n", done.stderr
