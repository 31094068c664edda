"""The equations of motion and their solvers: the slow SDE near Γ, and the rival models of the same optimizers.

A problem and an optimizer make a `SlowSDE`; from a start on Γ it is solved as a flow, to rest, or as a diffusion. All
on flat coordinates, in the precision in force; knows no metric that a user asked for, no trajectory and no file.
"""
