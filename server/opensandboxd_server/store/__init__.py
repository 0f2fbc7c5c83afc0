"""What a container cannot hold: renewed expiry, patched metadata, request ids, failures."""
