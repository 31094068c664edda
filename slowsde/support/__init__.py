"""What any run of any kind needs: checks of single arguments, clocks, kept programs, and long work in pieces.

Knows numbers and keys; knows no problem, no optimizer, no trajectory.
"""
