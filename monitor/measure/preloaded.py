"""Imported by the process that measuring processes are forked from (`monitor.base.workers`): Evidently takes five
seconds and 250 MB, once for all of them."""

from monitor.measure import _evidently
from retrain.base.loading import loading

with loading():
    _evidently.load()
