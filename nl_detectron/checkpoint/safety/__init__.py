"""The boundary behind which files of strangers are read.

What is in here takes bytes that anyone may have made, and gives arrays, tensors and plain
containers. Nothing that a file names is imported or called, and no room is made for what a file
only declares. Nothing else in the package unpickles, except a file that ``trust`` is set for.
"""
