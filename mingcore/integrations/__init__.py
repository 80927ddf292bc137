"""The ops inside other people's models, one package per library.

They import `mingcore.ops` only, and their library not before a function of theirs is called.
"""
