"""Pure rules of the control plane: what a sandbox is, what may be asked for, what is refused. No I/O."""
