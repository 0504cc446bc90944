"""`python -m tests.broker`: a real Kafka broker on this machine until Ctrl-C, to try driftd with."""

import signal
import tempfile
import threading
from pathlib import Path

from tests.broker import Broker

stop = threading.Event()
for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, lambda *_: stop.set())
with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
    print(f"Kafka at {broker.bootstrap} (Ctrl-C stops it)", flush=True)
    stop.wait()
