"""Other people's savers write holdfast checkpoints: fsspec URLs, `torch.distributed.checkpoint`, torch_checkpointing.

Each writes into a checkpoint folder of its own, in which every checkpoint has a name. Several processes write parts
(`parts`), one of them binds the parts to a manifest (`publishing`); `catalog` says what lies under which name.
"""
