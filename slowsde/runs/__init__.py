"""Runs that users call, one kind a file: each is its own mathematics within the frame of `frame`.

A run is asked for (`Request`), prepared, solved and recorded as a `Trajectory`, which files and other clocks belong to.
Knows the dynamics and metrics; knows no verdict on what it found.
"""
