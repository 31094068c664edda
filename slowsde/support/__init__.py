"""What any run of any kind needs: checks of single arguments, clocks, progress lines, kept programs.

Knows numbers and keys; knows no problem, no optimizer, no trajectory.
"""
