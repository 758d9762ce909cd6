"""On what: networks, tasks, pictures and the files they come from."""
