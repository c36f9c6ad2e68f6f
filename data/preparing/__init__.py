"""Making, checking and repairing prepared sets."""
