"""Run on any machine that SSH reaches, and forget the connection."""
