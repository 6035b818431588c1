"""A second copy of a run's checkpoints on an object store: sent, fenced, kept short, and brought back.

The keys are those of the checkpoint folder, `packs/ manifests/ leases/ format.json`, so `View` shows a mirror to
everything that reads a folder. Its packs are its own: cut and compressed anew. Besides these: `terms/` and `*.alive` of
the fence, `index/` for people, `run/` and `logs/` for a machine that has nothing.
"""
