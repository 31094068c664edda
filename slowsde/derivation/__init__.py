"""The slow SDE of a formula, as formulas: SymPy in, SymPy out.

`formula` is what is asked for, in real symbols and exact numbers; `manifold` finds Γ and checks it; `optimizers` runs V
and S on symbols; `coefficients` is the mathematics, rational throughout; `tidy` simplifies; `derivation` is what users
hold, `reduced` its coordinates on Γ, `potential` what it descends, `printing` its formulas and `numbers` the way back.
SymPy is imported by the first of these that is, and by nothing of the library below.
"""
