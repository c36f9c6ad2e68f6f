"""Command lines of the verbs, one file each: `parser()` with the help text. Light: no torch, no numpy."""
