"""Imported by the process that measuring processes are forked from (`monitor.base.workers`): Evidently takes five
seconds and 250 MB, once for all of them."""

import os

from monitor.base.workers import NICE
from monitor.measure import _evidently
from retrain.base.loading import loading

os.nice(NICE)
with loading():
    _evidently.load()
