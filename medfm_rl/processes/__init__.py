"""Several processes at one piece of work: what a process knows of the others, and how they are started and ended."""
