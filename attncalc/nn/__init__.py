"""The networks: a `Graph` in, `AtomOutputs` out; one file each."""
