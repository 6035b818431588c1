"""The user's code, copied once for each run, so that edits made meanwhile do not change what is running."""
