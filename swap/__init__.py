"""What swap_in.py is made of, in the order in which it is used:

fork.py     finds the codebase and says what its files look like
imports.py  which files and names Python files import, by reading them
edit.py     the edit of train.py
recipes.py  configuration files, scripts and the command for the codebase
probe.py    runs inside the codebase: whose Dassl works, what can be imported
plan.py     puts all this together, and checks it in a copy of links before the first byte is written
undo.py     carries a plan out and takes it back, from the manifest alone
"""
