"""Where the work of a command is done: in processes of this machine, or on a cluster."""
