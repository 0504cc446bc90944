"""Recorded history through the daemon's own decisions, with simulated time: what would driftd have done?"""
