"""The ops inside models of other projects, one package per library.

They import `mingcore.ops` only, and the other library when one of their functions is called.
"""
