"""`holdfast ckpt`: the checkpoints of a run, whatever it is doing meanwhile. A file a verb, imported when called."""

from __future__ import annotations

import click

from holdfast.commands.table import THERE, Table, Verb, Verbs

VERBS: Table = {
    "Commands": {
        "ls": Verb("ckpt.ls", "list them", THERE),
        "show": Verb("ckpt.show", "what one holds", THERE),
        "verify": Verb("ckpt.verify", "read every byte and compare the hashes", THERE),
        "diff": Verb("ckpt.diff", "how far two are apart, tensor by tensor", THERE),
        "pin": Verb("ckpt.pin", "keep one whatever the rules say", THERE),
        "unpin": Verb("ckpt.unpin", "leave it to the rules again", THERE),
        "rm": Verb("ckpt.rm", "remove single ones", THERE),
        "prune": Verb("ckpt.prune", "remove old ones, of many runs at once", THERE),
        "export": Verb("ckpt.export", "write one as .pt, safetensors, Hugging Face or DCP", THERE),
        "import": Verb("ckpt.import_", "make one of such a file", THERE),
        "push": Verb("ckpt.push", "send one to the mirror, or to any URL", THERE),
        "pull": Verb("ckpt.pull", "bring one from there", THERE),
        "sync": Verb("ckpt.sync", "make the mirror hold what the folder holds", THERE),
    }
}


@click.command("ckpt", cls=Verbs, table=VERBS)
def command() -> None:
    """Checkpoints of a run: look, verify, move, remove."""
