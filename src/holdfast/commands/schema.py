"""`holdfast schema`: what a run file may hold, for editors (JSON schema) and for people (Markdown)."""

from __future__ import annotations

import json

import click


@click.command("schema")
@click.option("--markdown", is_flag=True, help="The reference page in place of the JSON schema.")
def command(markdown: bool) -> int:
    """Print the JSON schema of the run file."""
    from holdfast.spec import reference

    click.echo(reference.markdown() if markdown else json.dumps(reference.json_schema(), indent=2), nl=not markdown)
    return 0
