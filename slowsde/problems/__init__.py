"""What is minimized and how noisily: losses and noise models, one a file, behind the interfaces of `abstract`.

A problem knows its loss, its data and its noise; a noise model knows its factor B and how to draw a gradient. Neither
knows an optimizer or a time.
"""
