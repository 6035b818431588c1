"""SSH inside a WebSocket that resumes: one SSH connection outlives cuts of the TCP below it.

`server` stands where the targets can be reached, `client` is what ssh starts as a ProxyCommand. Both ends run the same
`Stream`. docs/concepts/link.md has the messages.
"""
