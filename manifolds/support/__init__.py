"""What the geometry stands on and any numerical library might: flat coordinates of pytrees, precision, blocks, threads.

Knows nothing of losses or manifolds.
"""
