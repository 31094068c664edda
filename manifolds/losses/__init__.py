"""Losses on flat coordinates, one kind a file, behind the one interface of `abstract`.

A loss knows its derivatives, how its third derivative is contracted, and its normal space at a point; the route (dense
Hessian, stored Jacobian, products alone) is its own business. It knows no flow, and never whether a point is on Γ.
"""
