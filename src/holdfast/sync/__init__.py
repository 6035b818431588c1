"""Folders from one machine to another by manifest and pack, over any two byte streams.

The end that has the files tells what there is (`sending`); the end that gets them compares, asks for what it lacks, and
alone decides what is written and removed (`receiving`). Neither believes the other.
"""
