"""Other tools' checkpoint formats, one file each; the file's name is the format's name on the command line."""
