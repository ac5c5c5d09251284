"""The command line: `main` mounts one module a command. Nothing here is imported that imports torch."""
