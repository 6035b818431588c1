"""The node's resident process, which answers and runs verbs; and the laptop's end of a call, which outlives a cut."""
