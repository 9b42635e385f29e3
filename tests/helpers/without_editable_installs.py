"""The start of a program that imports a copy of the package."""

# An editable install would find what the copy lacks, such as the compiled extension, in the source
# tree.
WITHOUT_EDITABLE_INSTALLS = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith("__editable__")]
"""
