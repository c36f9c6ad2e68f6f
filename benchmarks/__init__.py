"""What is quick and what is not. Measured with the threads of the commands."""

import launchers  # noqa: F401
